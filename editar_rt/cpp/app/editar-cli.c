/* editar-cli: edits pictures with a bundle, shows it, verifies it and measures it. Plain C over editar.h, with the JSON
 * of Python's command. */
#if !defined(_WIN32)
#define _POSIX_C_SOURCE 200809L
#endif
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "editar/editar.h"

enum { MOST_TEXTS = 128, MOST_STATES = 64 << 20, MOST_PICTURE = 1 << 30 };
static const char HELP[] =
    "editar-cli edit BUNDLE IMAGE INSTRUCTION -o OUT.png [options]\n"
    "editar-cli info BUNDLE [--check]\n"
    "editar-cli verify BUNDLE [options]\n"
    "editar-cli bench BUNDLE [--repeats N] [--warmup N] [--at N] [--steps N] [options]\n"
    "\n"
    "for all:    --json (one JSON document as the last line)  --device auto|cpu|cuda|tensorrt  --threads N\n"
    "            --engine FILE (ONNX Runtime's library; or $EDITAR_ONNXRUNTIME)  --no-cache (of prepacked weights)\n"
    "sampling:   --seed N  --cfg-scale S|linear:A,B|cosine:A,B|values:A,B,...  --cfg-interval N|START,STOP\n"
    "            --temperature T  --top-k K  --top-p P  --greedy  --noise uniform|gumbel\n"
    "edit:       --task edit|depth|canny|segmentation  -n COUNT (OUT-SEED.png for each seed)  --speculate N|auto\n"
    "            --mask PICTURE  --mask-margin N  --no-composite  --text-states FILE.npy  --no-metadata\n";

static volatile sig_atomic_t signalled;
static volatile int32_t stop;

static void on_signal(int number) {
    signalled = number;
    stop = 1;
    signal(number, SIG_DFL); /* a second one ends the program immediately */
}

static int complain(int code, const char* format, ...) {
    va_list values;
    va_start(values, format);
    fputs("editar-cli: ", stderr);
    vfprintf(stderr, format, values);
    fputc('\n', stderr);
    va_end(values);
    return code;
}

static int failed(editar_status status) {
    return complain(status == EDITAR_BAD_ARGUMENT ? 2 : 1, "%s", editar_last_error());
}

/* ---- options ---- */

typedef struct {
    const char* words[4];
    int word_count;
    const char *output, *task, *mask, *text_states;
    int json, check, metadata;
    int32_t count;
    editar_model_options model;
    editar_sampling sampling;
    editar_request request;
    editar_bench_plan plan;
    double* scales;
    int scale_count;
} arguments;

static int read_double(const char* name, const char* text, double* value) {
    char* end;
    errno = 0;
    *value = strtod(text, &end);
    if (end == text || *end != '\0' || !isfinite(*value)) return complain(2, "%s must be a number, got %s", name, text);
    return 0;
}

static int read_int(const char* name, const char* text, int32_t least, int32_t* value) {
    char* end;
    long parsed;
    errno = 0;
    parsed = strtol(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0 || parsed < least || parsed > 2147483647L)
        return complain(2, "%s must be an integer of %d or more, got %s", name, (int)least, text);
    *value = (int32_t)parsed;
    return 0;
}

static int read_seed(const char* text, editar_sampling* sampling) {
    char* end;
    errno = 0;
    sampling->seed = strtoull(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0 || strchr(text, '-') != NULL)
        return complain(2, "seed must be 0 to 2^64 - 1, got %s", text);
    if (sampling->seed == 0) sampling->flags |= EDITAR_SEED_IS_ZERO;
    return 0;
}

static int read_scale(const char* text, arguments* all) {
    const char* colon = strchr(text, ':');
    int count = 1;
    const char* at;
    if (colon == NULL) {
        if (read_double("cfg_scale", text, &all->sampling.cfg_scale) != 0) return 2;
        if (all->sampling.cfg_scale == 0) all->sampling.cfg_scale = 1; /* both are no guidance */
        return 0;
    }
    for (at = colon; *at != '\0'; ++at) count += *at == ',';
    free(all->scales);
    all->scales = calloc((size_t)count, sizeof(double));
    if (all->scales == NULL) return complain(1, "there is not enough memory");
    all->scale_count = 0;
    for (at = colon + 1; all->scale_count < count; ++at) {
        char* end;
        all->scales[all->scale_count++] = strtod(at, &end);
        if (end == at || (*end != ',' && *end != '\0')) return complain(2, "cfg_scale must be numbers, got %s", text);
        at = end;
        if (*end == '\0') break;
    }
    if (strncmp(text, "values:", 7) == 0) {
        all->sampling.cfg_scales = all->scales; /* their number is checked when the bundle is open */
        return 0;
    }
    all->sampling.cfg_shape = strncmp(text, "linear:", 7) == 0 ? EDITAR_LINEAR : EDITAR_COSINE;
    if ((all->sampling.cfg_shape == EDITAR_COSINE && strncmp(text, "cosine:", 7) != 0) || all->scale_count != 2)
        return complain(2, "cfg_scale must be a number, linear:FIRST,LAST, cosine:FIRST,LAST or values:A,B,..., got %s",
                        text);
    all->sampling.cfg_scale = all->scales[0];
    all->sampling.cfg_last = all->scales[1];
    return 0;
}

static int read_interval(const char* text, editar_sampling* sampling) {
    const char* comma = strchr(text, ',');
    char first[32];
    int32_t number;
    if (comma == NULL) { /* the last decode step with guidance; token 0 comes from the prefill */
        if (read_int("cfg_interval", text, -1, &number) != 0) return 2;
        sampling->cfg_start = 0;
        sampling->cfg_stop = number == -1 ? EDITAR_TO_THE_END : number + 2;
        sampling->flags |= EDITAR_INTERVAL_IS_STEP;
        return 0;
    }
    if ((size_t)(comma - text) >= sizeof first) return complain(2, "cfg_interval must be START,STOP, got %s", text);
    memcpy(first, text, (size_t)(comma - text));
    first[comma - text] = '\0';
    if (read_int("cfg_interval", first, 0, &sampling->cfg_start) != 0) return 2;
    return read_int("cfg_interval", comma + 1, 1, &sampling->cfg_stop);
}

/* The value of an option: the rest of the word after =, or the next word. */
static const char* value_of(const char* word, const char* name, int* at, int count, char** words) {
    const size_t length = strlen(name);
    if (strncmp(word, name, length) != 0) return NULL;
    if (word[length] == '=') return word + length + 1;
    if (word[length] != '\0') return NULL;
    if (*at + 1 >= count) {
        complain(2, "%s needs a value", name);
        exit(2);
    }
    return words[++*at];
}

static int read_arguments(int count, char** words, arguments* all) {
    int at;
    int32_t number;
    memset(all, 0, sizeof *all);
    all->metadata = 1;
    all->model.size = sizeof all->model;
    all->sampling.size = sizeof all->sampling;
    all->request.size = sizeof all->request;
    all->plan.size = sizeof all->plan;
    for (at = 2; at < count; ++at) {
        const char *word = words[at], *value;
        int bad = 0;
#define VALUE(name) ((value = value_of(word, name, &at, count, words)) != NULL)
        if (word[0] != '-' || word[1] == '\0') {
            if (all->word_count == 3) return complain(2, "too many arguments: %s", word);
            all->words[all->word_count++] = word;
        } else if (strcmp(word, "--json") == 0) {
            all->json = 1;
        } else if (strcmp(word, "--check") == 0) {
            all->check = 1;
        } else if (strcmp(word, "--no-metadata") == 0) {
            all->metadata = 0;
        } else if (strcmp(word, "--no-composite") == 0) {
            all->request.no_composite = 1;
        } else if (strcmp(word, "--no-cache") == 0) {
            all->model.cache = "off";
        } else if (strcmp(word, "--greedy") == 0) {
            all->sampling.flags |= EDITAR_GREEDY;
        } else if (VALUE("-o") || VALUE("--output")) {
            all->output = value;
        } else if (VALUE("--task")) {
            all->task = value;
        } else if (VALUE("--mask")) {
            all->mask = value;
        } else if (VALUE("--text-states")) {
            all->text_states = value;
        } else if (VALUE("--device")) {
            all->model.device = value;
        } else if (VALUE("--engine")) {
            all->model.engine_path = value;
        } else if (VALUE("--threads")) {
            bad = read_int("threads", value, 1, &all->model.threads);
        } else if (VALUE("--seed")) {
            bad = read_seed(value, &all->sampling);
        } else if (VALUE("--cfg-scale")) {
            bad = read_scale(value, all);
        } else if (VALUE("--cfg-interval")) {
            bad = read_interval(value, &all->sampling);
        } else if (VALUE("--temperature")) {
            bad = read_double("temperature", value, &all->sampling.temperature);
            if (bad == 0 && all->sampling.temperature <= 0)
                return complain(2, "temperature must be a finite number above 0, got %s", value);
        } else if (VALUE("--top-k")) {
            bad = read_int("top_k", value, 0, &all->sampling.top_k);
            if (all->sampling.top_k == 0) all->sampling.top_k = EDITAR_TOP_K_OFF;
        } else if (VALUE("--top-p")) {
            bad = read_double("top_p", value, &all->sampling.top_p);
            if (bad == 0 && all->sampling.top_p <= 0) return complain(2, "top_p must be in (0, 1], got %s", value);
        } else if (VALUE("--noise")) {
            all->sampling.noise = strcmp(value, "gumbel") == 0 ? EDITAR_GUMBEL : EDITAR_UNIFORM;
            if (all->sampling.noise == EDITAR_UNIFORM && strcmp(value, "uniform") != 0)
                return complain(2, "noise must be uniform or gumbel, got %s", value);
        } else if (VALUE("--speculate")) {
            if (strcmp(value, "auto") == 0)
                all->request.speculate = EDITAR_SPECULATE_AUTO;
            else
                bad = read_int("speculate", value, 2, &all->request.speculate);
        } else if (VALUE("--mask-margin")) {
            bad = read_int("mask_margin", value, 0, &number);
            all->request.mask_margin = number == 0 ? -1 : number;
        } else if (VALUE("-n")) {
            bad = read_int("n", value, 1, &all->count);
        } else if (VALUE("--repeats")) {
            bad = read_int("repeats", value, 1, &all->plan.repeats);
        } else if (VALUE("--warmup")) {
            bad = read_int("warmup", value, 0, &all->plan.warmup);
            if (all->plan.warmup == 0) all->plan.warmup = -1;
        } else if (VALUE("--at")) {
            bad = read_int("at", value, 1, &all->plan.at);
        } else if (VALUE("--steps")) {
            bad = read_int("steps", value, 1, &all->plan.steps);
        } else {
            return complain(2, "there is no option %s; editar-cli --help lists them", word);
        }
#undef VALUE
        if (bad != 0) return bad;
    }
    return 0;
}

/* ---- files ---- */

/* A whole file; NULL, with a message, if it cannot be read. */
static unsigned char* read_file(const char* path, size_t most, size_t* bytes) {
    FILE* file = fopen(path, "rb");
    unsigned char* data = NULL;
    size_t room = 1 << 16, got;
    *bytes = 0;
    if (file == NULL) {
        complain(1, errno == ENOENT ? "there is no file %s" : "%s cannot be read", path);
        return NULL;
    }
    for (;;) {
        unsigned char* grown = realloc(data, room);
        if (grown == NULL) break;
        data = grown;
        got = fread(data + *bytes, 1, room - *bytes, file);
        *bytes += got;
        if (*bytes < room) {
            if (ferror(file)) break;
            fclose(file);
            return data;
        }
        if (*bytes >= most) {
            complain(1, "%s is larger than %d MB; at most that much is read", path, (int)(most >> 20));
            free(data);
            fclose(file);
            return NULL;
        }
        room *= 2;
    }
    complain(1, "%s cannot be read", path);
    free(data);
    fclose(file);
    return NULL;
}

/* A picture file; 0, or an exit code. */
static int read_picture(const char* path, int32_t channels, editar_picture* picture, char digits[65]) {
    size_t bytes;
    int code = 0;
    editar_status status;
    unsigned char* file = read_file(path, MOST_PICTURE, &bytes);
    if (file == NULL) return 1;
    memset(picture, 0, sizeof *picture);
    picture->size = sizeof *picture;
    picture->channels = channels;
    status = editar_hash(file, bytes, digits);
    if (status == EDITAR_OK) status = editar_read_picture(file, bytes, picture);
    if (status == EDITAR_OK) {
        picture->data = malloc((size_t)picture->width * (size_t)picture->height * (size_t)picture->channels);
        status = picture->data == NULL ? EDITAR_NO_MEMORY : editar_read_picture(file, bytes, picture);
    }
    if (status != EDITAR_OK) code = complain(1, "%s: %s", path, editar_last_error());
    free(file);
    return code;
}

/* Text states from NumPy's .npy: float32 [1, T, C] or [T, C]; NULL, with a message, if it is anything else. */
static float* read_states(const char* path, size_t count) {
    size_t bytes, header;
    float* states;
    unsigned char* file = read_file(path, MOST_STATES, &bytes);
    if (file == NULL) return NULL;
    header = bytes < 12 ? 0 : file[6] == 1 ? 10u + file[8] + 256u * file[9] : 0;
    if (header == 0 || memcmp(file, "\x93NUMPY", 6) != 0 || header > bytes || bytes - header != count * sizeof(float) ||
        strstr((char*)file + 10, "'<f4'") == NULL || strstr((char*)file + 10, "'fortran_order': False") == NULL) {
        complain(1, "%s must be a .npy of %u little-endian float32 (states of one text)", path, (unsigned)count);
        free(file);
        return NULL;
    }
    states = malloc(bytes - header);
    if (states != NULL) memcpy(states, file + header, bytes - header);
    free(file);
    return states;
}

/* ---- JSON ---- */

static void print_json(const char* text) {
    const unsigned char* at;
    putchar('"');
    for (at = (const unsigned char*)text; *at != '\0'; ++at) {
        if (*at == '"' || *at == '\\')
            printf("\\%c", *at);
        else if (*at == '\n')
            fputs("\\n", stdout);
        else if (*at < 0x20 || *at == 0x7f)
            printf("\\u%04x", *at);
        else
            putchar(*at);
    }
    putchar('"');
}

/* A setting: the number itself where Python's JSON has one, not the text of the picture's metadata. */
static void print_setting(const char* name, const char* value) {
    static const char* const numbers[] = {"cfg_interval", "temperature", "top_k",    "top_p",
                                          "seed",         "mask_margin", "variants", "speculate"};
    size_t n;
    print_json(name);
    fputs(": ", stdout);
    for (n = 0; n < sizeof numbers / sizeof *numbers; ++n)
        if (strcmp(name, numbers[n]) == 0) break;
    if (n < sizeof numbers / sizeof *numbers || (strcmp(name, "cfg_scale") == 0 && strchr(value, ':') == NULL))
        fputs(value, stdout);
    else if (strcmp(name, "greedy") == 0 || strcmp(name, "composite") == 0)
        fputs(value[0] == 'T' || value[0] == 't' ? "true" : "false", stdout);
    else
        print_json(value);
}

static void print_result(const char* path, const editar_output* made, double total, const char* const* texts) {
    fputs("{\"output\": ", stdout);
    print_json(path);
    printf(
        ", \"timings\": {\"encode\": %.9g, \"text\": %.9g, \"prefill\": %.9g, \"decode\": %.9g, \"pixels\": %.9g, "
        "\"total\": %.9g}, \"parameters\": {",
        made->encode_seconds, made->text_seconds, made->prefill_seconds, made->decode_seconds, made->pixel_seconds,
        total);
    for (; texts[0] != NULL; texts += 2) {
        print_setting(texts[0], texts[1]);
        if (texts[2] != NULL) fputs(", ", stdout);
    }
    fputs("}}", stdout);
}

/* ---- commands ---- */

static double seconds(void) {
#if defined(_WIN32)
    return (double)clock() / CLOCKS_PER_SEC;
#else
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
#endif
}

/* OUT-SEED.png for OUT.png. */
static void beside(char* path, size_t room, const char* output, const char* seed) {
    const char* dot = strrchr(output, '.');
    const size_t stem = dot == NULL ? strlen(output) : (size_t)(dot - output);
    snprintf(path, room, "%.*s-%s%s", (int)stem, output, seed, dot == NULL ? "" : dot);
}

static const char* text_named(const char* const* texts, const char* name) {
    for (; texts[0] != NULL; texts += 2)
        if (strcmp(texts[0], name) == 0) return texts[1];
    return "";
}

/* Write a variant's picture; 0, or an exit code. */
static int write_variant(const arguments* all, editar_session* session, int32_t variant, const editar_output* made,
                         int32_t side, double total, const char digits[65], const char* mask_digits) {
    const char *const *own = editar_get_texts(session, variant), *texts[MOST_TEXTS];
    char path[4096], margin[16], variants[16];
    size_t count = 0;
    editar_picture picture;
    if (own == NULL) return failed(EDITAR_INTERNAL);
    while (own[count] != NULL && count < MOST_TEXTS - 16) {
        texts[count] = own[count];
        ++count;
    }
#define TEXT(name, value) (texts[count++] = (name), texts[count++] = (value))
    TEXT("picture", digits);
    if (mask_digits != NULL) {
        TEXT("mask_from", mask_digits);
        snprintf(margin, sizeof margin, "%d",
                 all->request.mask_margin == 0  ? 1
                 : all->request.mask_margin < 0 ? 0
                                                : (int)all->request.mask_margin);
        TEXT("mask_margin", margin);
        TEXT("composite", all->request.no_composite ? "false" : "true");
    }
    snprintf(variants, sizeof variants, "%d", (int)all->count);
    if (all->count > 0) TEXT("variants", variants);
    texts[count] = NULL;
#undef TEXT
    if (all->count > 0)
        beside(path, sizeof path, all->output, text_named(texts, "seed"));
    else
        snprintf(path, sizeof path, "%s", all->output);
    memset(&picture, 0, sizeof picture);
    picture.size = sizeof picture;
    picture.data = made->rgb + (size_t)variant * (size_t)side * (size_t)side * 3;
    picture.width = picture.height = side;
    picture.channels = EDITAR_RGB;
    if (editar_write_png(path, &picture, all->metadata ? texts : NULL) != EDITAR_OK)
        return complain(1, "%s", editar_last_error());
    if (all->json) {
        if (variant > 0) fputs(", ", stdout);
        print_result(path, made, total, texts);
    } else {
        printf("%s  (%.2f s)\n", path, total);
    }
    return 0;
}

static int edit(const arguments* all, editar_model* model, const editar_model_info* info) {
    editar_picture picture, mask;
    editar_session* session = NULL;
    editar_request request = all->request;
    editar_output made;
    editar_status status;
    char digits[65], mask_digits[65];
    float* states = NULL;
    int32_t variant, variants = all->count == 0 ? 1 : all->count;
    const double started = seconds();
    int code;
    memset(&made, 0, sizeof made);
    memset(&picture, 0, sizeof picture);
    memset(&mask, 0, sizeof mask);
    code = read_picture(all->words[1], 0, &picture, digits);
    if (code == 0 && all->mask != NULL) code = read_picture(all->mask, EDITAR_GREY, &mask, mask_digits);
    if (code == 0 && all->text_states != NULL) {
        states = read_states(all->text_states, (size_t)info->text_tokens * (size_t)info->text_dim);
        code = states == NULL;
    }
    if (code == 0) {
        status = editar_open_session(model, &picture, &session);
        made.size = sizeof made;
        made.rgb = malloc((size_t)variants * (size_t)info->image_size * (size_t)info->image_size * 3);
        request.task = all->task;
        request.instruction = all->words[2];
        request.sampling = &all->sampling;
        request.text_states = states;
        request.variants = variants;
        request.mask = all->mask == NULL ? NULL : &mask;
        request.stop = &stop;
        if (status == EDITAR_OK) status = made.rgb == NULL ? EDITAR_NO_MEMORY : editar_edit(session, &request, &made);
        if (status == EDITAR_STOPPED)
            code = complain(128 + (int)signalled, "stopped");
        else if (status != EDITAR_OK)
            code = failed(status);
    }
    if (code == 0 && (made.flags & EDITAR_TEXT_TRUNCATED) != 0)
        complain(0, "the prompt has %d tokens; only the first %d are read", (int)made.prompt_tokens,
                 (int)info->text_tokens);
    if (code == 0 && (made.flags & EDITAR_MASK_EMPTY) != 0)
        complain(0, "the mask has no white within the picture's middle square, so the picture stays as it is");
    if (code == 0 && all->json && all->count > 0) fputs("{\"pictures\": [", stdout);
    for (variant = 0; code == 0 && variant < variants; ++variant)
        code = write_variant(all, session, variant, &made, info->image_size, seconds() - started, digits,
                             all->mask == NULL ? NULL : mask_digits);
    if (code == 0 && all->json) puts(all->count > 0 ? "]}" : "");
    editar_close_session(session);
    free(made.rgb);
    free(states);
    free(picture.data);
    free(mask.data);
    return code;
}

static int info_command(const arguments* all) {
    const char* json;
    const editar_status status = editar_describe_bundle(all->words[0], all->check, &json);
    if (status != EDITAR_OK) return failed(status);
    puts(json);
    return 0;
}

static int verify(editar_model* model) {
    const char* json;
    int32_t holds;
    const editar_status status = editar_verify(model, &holds, &json);
    if (status != EDITAR_OK) return failed(status);
    puts(json);
    if (holds) return 0;
    return complain(1,
                    "the outputs differ from those of the exporting machine; use another device or ONNX Runtime, or "
                    "export the bundle again on this machine");
}

static int bench(const arguments* all, editar_model* model) {
    const char* json;
    const editar_status status = editar_bench(model, &all->plan, &all->sampling, &json);
    if (status != EDITAR_OK) return failed(status);
    puts(json);
    return 0;
}

static void EDITAR_CALL say(void* user, int32_t level, const char* message) {
    (void)user;
    (void)level;
    fprintf(stderr, "%s\n", message);
}

int main(int count, char** words) {
    const char* command = count > 1 ? words[1] : "--help";
    const int wanted = strcmp(command, "edit") == 0 ? 3 : 1;
    arguments all;
    editar_model* model = NULL;
    editar_model_info info;
    editar_status status;
    int code;
    if (strcmp(command, "--version") == 0) {
        printf("editar-cli %s\n", editar_version());
        return 0;
    }
    if (strcmp(command, "--help") == 0 || strcmp(command, "-h") == 0) {
        fputs(HELP, stdout);
        return count > 1 ? 0 : 2;
    }
    if (strcmp(command, "edit") != 0 && strcmp(command, "info") != 0 && strcmp(command, "verify") != 0 &&
        strcmp(command, "bench") != 0)
        return complain(2, "there is no command %s; the commands are edit, info, verify and bench", command);
    code = read_arguments(count, words, &all);
    if (code == 0 && all.word_count != wanted)
        code = complain(2, "%s needs %s", command, wanted == 3 ? "BUNDLE, IMAGE and INSTRUCTION" : "BUNDLE");
    if (code == 0 && wanted == 3 && all.output == NULL) code = complain(2, "edit needs -o OUT.png");
    if (code == 0 && wanted == 3 &&
        (strlen(all.output) < 4 || strcmp(all.output + strlen(all.output) - 4, ".png") != 0))
        code = complain(2, "a picture's name must end with .png, got %s", all.output);
    if (code == 0 && strcmp(command, "info") == 0) {
        code = info_command(&all);
    } else if (code == 0) {
        signal(SIGINT, on_signal);
        signal(SIGTERM, on_signal);
        editar_set_log(say, NULL, EDITAR_LOG_ERROR);
        status = editar_open_model(all.words[0], &all.model, &model);
        info.size = sizeof info;
        if (status == EDITAR_OK) status = editar_get_model_info(model, &info);
        if (status != EDITAR_OK)
            code = failed(status);
        else if (all.sampling.cfg_scales != NULL && all.scale_count != info.picture_tokens)
            code = complain(2, "cfg_scale has %d values, but a picture has %d tokens", all.scale_count,
                            (int)info.picture_tokens);
        else
            code = wanted == 3                      ? edit(&all, model, &info)
                   : strcmp(command, "verify") == 0 ? verify(model)
                                                    : bench(&all, model);
        editar_close_model(model);
    }
    free(all.scales);
    return code;
}
