/* editar.h - edits pictures with EditAR bundles. C99, no dependencies.
 *
 * Rules that hold for every function:
 * - Zero means the usual: every struct begins with `size`, its size in bytes. Fill that in and leave the rest 0 or
 *   NULL. Later versions append fields. The library accepts shorter structs than its own, and refuses longer ones whose
 *   unknown part is not 0. Structs are passed by pointer, never by value.
 * - Texts and paths are UTF-8, on Windows too, and are copied where they are needed after the call.
 * - The caller owns all memory that results are written to; memory that a function takes as `const` is only read, and
 *   only during the call. The library gives out two kinds of handles, which editar_close_* take back, and texts that
 *   live as long as their documentation says. On an error, handles are set to NULL.
 * - A function that can fail returns an editar_status and has a sentence for it in editar_last_error.
 * - No function throws, exits, prints, or changes a signal handler, the locale or the floating-point environment.
 *   Opening the first model sets the environment variable ORT_DISABLE_TELEMETRY to 1, unless it is set.
 * - Threads: every function may be called from any thread. A model and its sessions serve one call at a time; a second
 *   call gets EDITAR_BUSY at once and disturbs nothing. Different models are independent. A handle must not be closed
 *   while a call uses it, but models and sessions may be closed in any order and by any thread.
 * - Callbacks run on the calling thread, except editar_log_fn. They must return: no exceptions, no longjmp. They may
 *   call the library, but not with the same model.
 * - After a fork, the child opens models of its own: calls with its parent's models are refused, and closing them does
 *   nothing. Do not fork while another thread is in a call.
 * - There is no call to start or shut down the library. Once it has opened a model, it stays loaded until the process
 *   ends, also after dlclose.
 */
#ifndef EDITAR_H
#define EDITAR_H

#include <stddef.h>
#include <stdint.h>

#define EDITAR_VERSION_MAJOR 0
#define EDITAR_VERSION_MINOR 2
#define EDITAR_VERSION_PATCH 0

#if defined(EDITAR_STATIC)
#define EDITAR_API
#elif defined(_WIN32)
#if defined(EDITAR_BUILD)
#define EDITAR_API __declspec(dllexport)
#else
#define EDITAR_API __declspec(dllimport)
#endif
#else
#define EDITAR_API __attribute__((visibility("default")))
#endif
#if defined(_WIN32)
#define EDITAR_CALL __cdecl
#else
#define EDITAR_CALL
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct editar_model editar_model;     /* an open bundle with its engine */
typedef struct editar_session editar_session; /* one picture, with its tokens and the decoder's cache */

/* The outcome of a call. Values from 0 on are not errors. The numbers never change. */
typedef int32_t editar_status;
enum {
    EDITAR_OK = 0,
    EDITAR_STOPPED = 1,         /* the caller asked to stop; the output is filled as far as the edit went */
    EDITAR_BAD_ARGUMENT = -1,   /* a value that is not allowed */
    EDITAR_BAD_BUNDLE = -2,     /* missing, damaged, altered, unsafe or of a newer format */
    EDITAR_MISSING_PART = -3,   /* the bundle lacks what the call needs */
    EDITAR_BAD_PICTURE = -4,    /* unreadable, truncated, too large, or of a format that is not built in */
    EDITAR_BACKEND_FAILED = -5, /* a library or device is missing or failed */
    EDITAR_NO_MEMORY = -6,
    EDITAR_BUSY = -7,        /* another call is using the model */
    EDITAR_UNSUPPORTED = -8, /* Python's runtime does this, and this library does not */
    EDITAR_INTERNAL = -99    /* a fault of this library; please report it */
};

/* ---- the library ---- */

/* The library's version, "0.2.0", as EDITAR_VERSION_… are the header's. A library of the same major version that is not
 * older than the header serves a program; an older one refuses what it does not know. */
EDITAR_API const char* EDITAR_CALL editar_version(void);
/* One sentence about this thread's last call that can fail, if it did; otherwise "". Valid until the thread's next such
 * call. */
EDITAR_API const char* EDITAR_CALL editar_last_error(void);

enum { EDITAR_LOG_DEBUG = 0, EDITAR_LOG_INFO = 1, EDITAR_LOG_WARNING = 2, EDITAR_LOG_ERROR = 3 };
typedef void(EDITAR_CALL* editar_log_fn)(void* user, int32_t level, const char* message);
/* Messages of the library and of the engine, of the whole process, from `least_level` on. `log` is called from any
 * thread, the engine's own too, and must not call the library. Set it while no model is open. NULL, as at first, is
 * silence. */
EDITAR_API void EDITAR_CALL editar_set_log(editar_log_fn log, void* user, int32_t least_level);

/* ---- models ---- */

typedef struct editar_model_options {
    size_t size;
    const char* device;           /* "auto" (NULL), "cpu", "cuda" or "tensorrt" */
    int32_t threads;              /* of the CPU, at most the machine's logical cores; 0 is one per physical core that
                                     the process may use. Tokens do not depend on it */
    int32_t check_all_files;      /* not 0: also hash files above 64 MiB */
    const char* onnxruntime_path; /* ONNX Runtime's library. NULL: $EDITAR_ONNXRUNTIME, beside this library, the
                                     system's. A process has one: the first model decides */
    const char* cache_folder;     /* of weights that are prepacked for this machine's CPU; NULL: $EDITAR_CACHE, or
                                     editar_rt in the user's folder for caches; "" or "off": none. It holds copies only,
                                     and Python's runtime shares it */
    const char* plugin_path;      /* libeditar_tensorrt, which runs TensorRT's engines. NULL: beside this library, the
                                     system's */
    const char* engine_folder;    /* of TensorRT engines in the bundle, by its name or path; NULL: the first that was
                                     built for this machine. Engines that were built without a GPU are compared once
                                     when they are opened, and the result is written beside them */
} editar_model_options;

/* Open a bundle. Every file's size and the hashes of all but the largest files are compared with the manifest. */
EDITAR_API editar_status EDITAR_CALL editar_open_model(const char* folder, const editar_model_options* options,
                                                       editar_model** model);
/* NULL does nothing. Its memory is freed with the last of its sessions. */
EDITAR_API void EDITAR_CALL editar_close_model(editar_model* model);

typedef struct editar_model_info {
    size_t size;
    int32_t image_size;      /* side of the pictures, pixels; 0 if unknown, as all sizes here */
    int32_t picture_tokens;  /* N */
    int32_t grid;            /* tokens along one side */
    int32_t vocabulary;      /* V */
    int32_t text_tokens;     /* T, length of the text encoder's input and output */
    int32_t text_dim;        /* C, width of the text states */
    int32_t parts;           /* EDITAR_HAS_… */
    const char* precision;   /* "fp32", … These texts live until the model is closed */
    const char* fingerprint; /* SHA-256 of bundle.json */
    const char* backend;     /* "ONNX Runtime 1.32.0 (CPU)" */
} editar_model_info;
enum { EDITAR_HAS_VQ = 1, EDITAR_HAS_TEXT = 2, EDITAR_HAS_DECODER = 4 };
/* Also during another call with the model. */
EDITAR_API editar_status EDITAR_CALL editar_get_model_info(const editar_model* model, editar_model_info* info);

/* ---- pictures ---- */

enum { EDITAR_GREY = 1, EDITAR_RGB = 3, EDITAR_RGBA = 4 };
typedef struct editar_picture { /* 8 bits per channel, sRGB, upright, lines from the top */
    size_t size;
    uint8_t* data; /* [height, stride]; functions that take a const picture do not write to it */
    int32_t width; /* pixels */
    int32_t height;
    int32_t channels; /* EDITAR_GREY, EDITAR_RGB or EDITAR_RGBA, which is blended with white */
    int64_t stride;   /* bytes from line to line, at least width * channels; 0 is that */
} editar_picture;

/* Read a PNG or JPEG, if the library was built with their readers, to the pixels that Python's runtime sees: EXIF's
 * orientation and colour profiles are applied, and transparency is blended with white. Call it with data NULL for
 * width, height, channels and stride, then with memory for them. With channels 0 or EDITAR_RGB it reads colours; with
 * EDITAR_GREY, a mask: transparency is blended with black. */
EDITAR_API editar_status EDITAR_CALL editar_read_picture(const void* file, size_t bytes, editar_picture* picture);
/* Write a PNG, beside its name and then renamed. `texts` are pairs of names and values, ended by NULL, or NULL; they
 * become text chunks "editar:NAME". */
EDITAR_API editar_status EDITAR_CALL editar_write_png(const char* path, const editar_picture* picture,
                                                      const char* const* texts);

/* SHA-256 of some bytes as 64 lower-case digits and a zero: the name by which results refer to pictures. */
EDITAR_API editar_status EDITAR_CALL editar_sha256(const void* data, size_t bytes, char digits[65]);

/* ---- edits ---- */

/* Prepare a picture for any number of edits. Its middle square is used, scaled to image_size. */
EDITAR_API editar_status EDITAR_CALL editar_open_session(editar_model* model, const editar_picture* picture,
                                                         editar_session** session);
/* NULL does nothing. */
EDITAR_API void EDITAR_CALL editar_close_session(editar_session* session);
/* The square of the picture that the model sees, image_size * image_size * 3 bytes, and its tokens [picture_tokens];
 * NULL where one is not wanted. Also during another call with the model. */
EDITAR_API editar_status EDITAR_CALL editar_get_source(const editar_session* session, uint8_t* rgb, int32_t* tokens);

enum { EDITAR_TOP_K_OFF = -1, EDITAR_TO_THE_END = -1 };
/* editar_sampling.flags */
enum {
    EDITAR_GREEDY = 1,          /* take the largest logit */
    EDITAR_NOT_GREEDY = 2,      /* even if that is the bundle's default */
    EDITAR_SEED_IS_ZERO = 4,    /* even if the bundle has another default */
    EDITAR_INTERVAL_IS_STEP = 8 /* texts name the guided tokens 0 to cfg_stop - 1 by the last guided step, as EditAR
                                   does: cfg_stop - 2 */
};
enum { EDITAR_CFG_CONSTANT = 0, EDITAR_CFG_LINEAR = 1, EDITAR_CFG_COSINE = 2 };     /* shapes of schedules */
enum { EDITAR_NOISE_USUAL = 0, EDITAR_NOISE_UNIFORM = 1, EDITAR_NOISE_GUMBEL = 2 }; /* random numbers of a token */
typedef struct editar_sampling {                                                    /* 0 is the bundle's default */
    size_t size;
    uint64_t seed;            /* the same seed gives the same tokens, here and in Python */
    double cfg_scale;         /* guidance; 1 is none. The first value of a schedule */
    double cfg_last;          /* the last value of a schedule; only with cfg_shape */
    int32_t cfg_shape;        /* EDITAR_CFG_LINEAR or _COSINE: from cfg_scale to cfg_last, both as they are */
    int32_t cfg_start;        /* tokens cfg_start to cfg_stop - 1 are guided; both 0 is the bundle's default */
    int32_t cfg_stop;         /* or EDITAR_TO_THE_END */
    int32_t top_k;            /* or EDITAR_TOP_K_OFF */
    const double* cfg_scales; /* [picture_tokens], in place of cfg_scale */
    double temperature;
    double top_p;  /* 1 is off */
    int32_t flags; /* EDITAR_GREEDY, … */
    int32_t noise; /* EDITAR_NOISE_… */
} editar_sampling;

/* Called after every token, or run of known ones. `tokens` [total] are those of the first variant, the source's from
 * `done` on; valid during the call. Not 0 stops the edit. */
typedef int32_t(EDITAR_CALL* editar_progress_fn)(void* user, int32_t done, int32_t total, const int32_t* tokens);
/* Called after lines of tokens with the first variant's picture so far, completed from the source; valid during the
 * call. Not 0 stops the edit. */
typedef int32_t(EDITAR_CALL* editar_preview_fn)(void* user, int32_t done, int32_t total, const editar_picture* picture);

enum { EDITAR_MAX_VARIANTS = 64, EDITAR_SPECULATE_AUTO = -1 };
typedef struct editar_request {
    size_t size;
    const char* task;         /* "edit" (NULL), "depth", "canny" or "segmentation" */
    const char* instruction;  /* the change, or the description of a picture; NULL is "" */
    const float* text_states; /* [text_tokens, text_dim], instead of running the text encoder */
    const int32_t* token_ids; /* [token_count], instead of running the tokenizer; with the end token, without padding */
    int32_t token_count;
    int32_t variants;                /* 0 is 1; at most EDITAR_MAX_VARIANTS. Their seeds are seed, seed + 1, … */
    const editar_sampling* sampling; /* NULL: the bundle's defaults */
    const int32_t* kept;             /* [keep] target tokens, which stay; the rest is drawn anew */
    int32_t keep;
    int32_t mask_margin;        /* width in tokens of the border around a mask that is drawn too; 0 is 1, -1 is none */
    const editar_picture* mask; /* EDITAR_GREY of the picture's aspect ratio: 128 and above may change. NULL: no mask */
    int32_t no_composite;       /* not 0: do not paste the result into the picture outside the mask */
    int32_t speculate;          /* positions that a pass drafts and verifies at once: an even number, or
                                   EDITAR_SPECULATE_AUTO; 0 is none. Tokens differ from plain decoding's only where a
                                   chunk's logits differ from a step's by rounding */
    editar_progress_fn on_progress;
    editar_preview_fn on_preview;
    double preview_share; /* largest share of the time of decoding that previews take; 0 is 0.1. Lines are left out to
                             stay below it, and a short edit may show none */
    void* user;           /* passed to both callbacks */
    /* Not 0 stops the edit before its next step; a run of the engine is not interrupted. It is read atomically, so any
     * thread may set it by an atomic store (atomic_int, std::atomic<int32_t>), and a signal handler of the calling
     * thread by a plain one. */
    const volatile int32_t* stop;
} editar_request;

enum { EDITAR_TEXT_TRUNCATED = 1, EDITAR_MASK_EMPTY = 2 };
typedef struct editar_output { /* not written to on an error */
    size_t size;
    int32_t* tokens;       /* [variants, picture_tokens], or NULL */
    uint8_t* rgb;          /* [variants, image_size, image_size, 3], or NULL: the VQ decoder does not run */
    int32_t* passes;       /* [variants], or NULL: runs of the decoder after the prefill in which a variant took part */
    int32_t done;          /* number of target tokens that are done */
    int32_t prompt_tokens; /* of the prompt before truncation; 0 with text_states */
    int32_t flags;         /* EDITAR_TEXT_TRUNCATED, EDITAR_MASK_EMPTY */
    double encode_seconds, text_seconds, prefill_seconds, decode_seconds, pixel_seconds, preview_seconds;
    double engine_seconds; /* of decode_seconds, those inside the engine */
} editar_output;

/* Edit the session's picture. The first edit prefills the picture and the text, each later one only the text. */
EDITAR_API editar_status EDITAR_CALL editar_edit(editar_session* session, const editar_request* request,
                                                 editar_output* output);
/* How a variant of the session's last successful edit was made, as Python's runtime stores it in pictures: pairs of
 * names and values, ended by NULL, for editar_write_png. They live until the session's next edit, or until it is
 * closed. NULL if there was no edit. */
EDITAR_API editar_status EDITAR_CALL editar_get_texts(const editar_session* session, int32_t variant,
                                                      const char* const** texts);

/* ---- reports: one JSON document each, as the commands of Python's runtime print with --json. A text lives until the
 * same thread's next call of one of these three functions. ---- */

/* `editar info`: the contents of a bundle and the memory that it needs. No engine is opened. */
EDITAR_API editar_status EDITAR_CALL editar_describe_bundle(const char* folder, int32_t check_all_files,
                                                            const char** json);
/* `editar verify`: whether the bundle gives the same outputs here as on the machine that exported it. `fault` is NULL
 * if it does, and otherwise one sentence that names the outputs. */
EDITAR_API editar_status EDITAR_CALL editar_verify(editar_model* model, const char** fault, const char** json);

typedef struct editar_bench_plan {
    size_t size;
    int32_t repeats; /* 0 is 5 */
    int32_t warmup;  /* unmeasured runs before them; 0 is 1, -1 is none */
    int32_t at;      /* cached positions at the first step; 0 is right after the prefill */
    int32_t steps;   /* of a repeat; 0 is to the end of the picture */
} editar_bench_plan;
/* `editar bench`: the time of every stage. */
EDITAR_API editar_status EDITAR_CALL editar_bench(editar_model* model, const editar_bench_plan* plan,
                                                  const editar_sampling* sampling, const char** json);

/* ---- steps of an edit, for tests and for those who bring their own ---- */

/* Token ids of a prompt, with its end token: at most `capacity` of them are written to `ids`, which may be NULL, and
 * `count` is their number before that. */
EDITAR_API editar_status EDITAR_CALL editar_tokenize(editar_model* model, const char* task, const char* instruction,
                                                     int32_t* ids, int32_t capacity, int32_t* count);
/* Token ids [count], cut or padded to text_tokens -> states [text_tokens, text_dim]. */
EDITAR_API editar_status EDITAR_CALL editar_encode_text(editar_model* model, const int32_t* ids, int32_t count,
                                                        float* states);
/* A square of image_size * image_size * 3 bytes -> tokens [picture_tokens]. */
EDITAR_API editar_status EDITAR_CALL editar_encode_square(editar_model* model, const uint8_t* rgb, int32_t* tokens);
/* Tokens [pictures, picture_tokens] -> [pictures, image_size, image_size, 3]. */
EDITAR_API editar_status EDITAR_CALL editar_decode_tokens(editar_model* model, const int32_t* tokens, int32_t pictures,
                                                          uint8_t* rgb);
/* Logits of all target positions with forced tokens: [picture_tokens, vocabulary], with the text and without; NULL
 * where one is not wanted. `condition` [picture_tokens]; NULL is the unconditional picture. */
EDITAR_API editar_status EDITAR_CALL editar_score(editar_model* model, const float* text_states,
                                                  const int32_t* condition, const int32_t* tokens, float* cond,
                                                  float* uncond);
/* Generate tokens [picture_tokens] from text states and a condition's tokens. `known` [picture_tokens] is negative
 * where tokens are drawn; NULL draws all. */
EDITAR_API editar_status EDITAR_CALL editar_generate(editar_model* model, const float* text_states,
                                                     const int32_t* condition, const editar_sampling* sampling,
                                                     const int32_t* known, int32_t* tokens);
/* One token from guided logits [vocabulary], for a position of the picture. 0 in `sampling` is EditAR's default here.
 */
EDITAR_API editar_status EDITAR_CALL editar_sample(const float* logits, int32_t vocabulary,
                                                   const editar_sampling* sampling, int32_t position, int32_t* token);

#ifdef __cplusplus
}
#endif
#endif
