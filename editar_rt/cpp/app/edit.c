/* editar-cli edit: one picture or several variants, written as PNG, and the JSON of Python's command. */
#if !defined(_WIN32)
#define _POSIX_C_SOURCE 200809L
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli.h"

enum { MOST_TEXTS = 128 };

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

static void print_result(const char* path, const editar_output* made, int32_t variant, double total,
                         const char* const* texts) {
    fputs("{\"output\": ", stdout);
    print_json(path);
    printf(
        ", \"timings\": {\"encode\": %.9g, \"text\": %.9g, \"prefill\": %.9g, \"decode\": %.9g, \"pixels\": %.9g, "
        "\"total\": %.9g}, \"passes\": %d, \"parameters\": {",
        made->encode_seconds, made->text_seconds, made->prefill_seconds, made->decode_seconds, made->pixel_seconds,
        total, (int)made->passes[variant]);
    for (; texts[0] != NULL; texts += 2) {
        print_setting(texts[0], texts[1]);
        if (texts[2] != NULL) fputs(", ", stdout);
    }
    fputs("}}", stdout);
}

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

/* A variant's file, and what is told about it. */
typedef struct {
    char path[MOST_PATH], margin[16], variants[16];
    const char* texts[MOST_TEXTS];
} variant_texts;

static int name_variant(const arguments* all, editar_session* session, int32_t variant, const char digits[65],
                        const char* mask_digits, variant_texts* named) {
    const char* const* own;
    size_t count = 0;
    const editar_status status = editar_get_texts(session, variant, &own);
    if (status != EDITAR_OK) return failed(status);
    while (own[count] != NULL && count < MOST_TEXTS - 16) {
        named->texts[count] = own[count];
        ++count;
    }
#define TEXT(name, value) (named->texts[count++] = (name), named->texts[count++] = (value))
    TEXT("picture", digits);
    if (mask_digits != NULL) {
        TEXT("mask_from", mask_digits);
        snprintf(named->margin, sizeof named->margin, "%d",
                 all->request.mask_margin == 0  ? 1
                 : all->request.mask_margin < 0 ? 0
                                                : (int)all->request.mask_margin);
        TEXT("mask_margin", named->margin);
        TEXT("composite", all->request.no_composite ? "false" : "true");
    }
    snprintf(named->variants, sizeof named->variants, "%d", (int)all->count);
    if (all->count > 0) TEXT("variants", named->variants);
    named->texts[count] = NULL;
#undef TEXT
    if (all->count > 0)
        beside(named->path, sizeof named->path, all->output, text_named(named->texts, "seed"));
    else
        snprintf(named->path, sizeof named->path, "%s", all->output);
    return 0;
}

static int write_variant(const arguments* all, const variant_texts* named, uint8_t* rgb, int32_t side) {
    editar_picture picture;
    memset(&picture, 0, sizeof picture);
    picture.size = sizeof picture;
    picture.data = rgb;
    picture.width = picture.height = side;
    picture.channels = EDITAR_RGB;
    if (editar_write_png(named->path, &picture, all->metadata ? named->texts : NULL) != EDITAR_OK)
        return complain(1, "%s", editar_last_error()); /* a name that cannot be written is no bad option */
    return 0;
}

int edit_command(const arguments* all, editar_model* model, const editar_model_info* info) {
    editar_picture picture, mask;
    editar_session* session = NULL;
    editar_request request = all->request;
    editar_output made;
    editar_status status;
    char digits[65], mask_digits[65];
    float* states = NULL;
    int32_t passes[EDITAR_MAX_VARIANTS];
    int32_t variant, variants = all->count == 0 ? 1 : all->count;
    const size_t square = (size_t)info->image_size * (size_t)info->image_size * 3; /* bytes of a picture */
    const char* inputs[4] = {all->words[1], NULL, NULL, NULL};
    const double started = seconds();
    double total;
    variant_texts* named = NULL; /* of every variant */
    int code, given = 1;
    memset(&made, 0, sizeof made);
    memset(&picture, 0, sizeof picture);
    memset(&mask, 0, sizeof mask);
    if (all->mask != NULL) inputs[given++] = all->mask;
    if (all->text_states != NULL) inputs[given++] = all->text_states;
    code = all->count > 0 ? check_folder(all->output) : check_output(all->output, all->words[0], inputs);
    if (code == 0) code = read_picture(all->words[1], 0, &picture, digits);
    if (code == 0 && all->mask != NULL) code = read_picture(all->mask, EDITAR_GREY, &mask, mask_digits);
    if (code == 0 && all->text_states != NULL) {
        states = read_states(all->text_states, (size_t)info->text_tokens * (size_t)info->text_dim);
        code = states == NULL;
    }
    if (code == 0) {
        status = editar_open_session(model, &picture, &session);
        made.size = sizeof made;
        made.passes = passes;
        made.rgb = malloc((size_t)variants * square);
        named = malloc((size_t)variants * sizeof *named);
        request.task = all->task;
        request.instruction = all->words[2];
        request.sampling = &all->sampling;
        request.text_states = states;
        request.variants = variants;
        request.mask = all->mask == NULL ? NULL : &mask;
        request.stop = &stop;
        if (status == EDITAR_OK && made.rgb != NULL && named != NULL) status = editar_edit(session, &request, &made);
        if (made.rgb == NULL || named == NULL)
            code = complain(1, "there is not enough memory for %d pictures", (int)variants);
        else if (status == EDITAR_STOPPED)
            code = complain(128 + (int)signalled, "stopped");
        else if (status != EDITAR_OK)
            code = failed(status);
    }
    if (code == 0 && (made.flags & EDITAR_TEXT_TRUNCATED) != 0)
        complain(0, "the prompt has %d tokens; only the first %d are read", (int)made.prompt_tokens,
                 (int)info->text_tokens);
    if (code == 0 && (made.flags & EDITAR_MASK_EMPTY) != 0)
        complain(0, "the mask has no white within the picture's middle square, so the picture stays as it is");
    /* All files are checked and written before anything is printed. */
    for (variant = 0; code == 0 && variant < variants; ++variant) {
        code = name_variant(all, session, variant, digits, all->mask == NULL ? NULL : mask_digits, &named[variant]);
        if (code == 0) code = check_output(named[variant].path, all->words[0], inputs);
    }
    for (variant = 0; code == 0 && variant < variants; ++variant)
        code = write_variant(all, &named[variant], made.rgb + (size_t)variant * square, info->image_size);
    total = seconds() - started;
    if (code == 0 && all->json && all->count > 0) fputs("{\"pictures\": [", stdout);
    for (variant = 0; code == 0 && variant < variants; ++variant) {
        if (all->json && variant > 0) fputs(", ", stdout);
        if (all->json)
            print_result(named[variant].path, &made, variant, total, named[variant].texts);
        else
            printf("%s  (%.2f s)\n", named[variant].path, total);
    }
    if (code == 0 && all->json) puts(all->count > 0 ? "]}" : "");
    editar_close_session(session);
    free(made.rgb);
    free(named);
    free(states);
    free(picture.data);
    free(mask.data);
    return code;
}
