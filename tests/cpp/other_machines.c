/* One program for every machine: edits, squares, ids and draws of the same inputs, as lines of text that can be compared.
 * usage: other_machines BUNDLE ENGINE_LIBRARY INPUTS, where INPUTS/list holds lines of FILE WIDTH HEIGHT INSTRUCTION
 * with raw RGB files, and INPUTS/texts one prompt a line. `tests/cpp/other_machines.sh` runs it. */
#include <editar/editar.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINE = 4096 };

static void fail(const char* what) {
    fprintf(stderr, "%s: %s\n", what, editar_last_error());
    exit(1);
}

static uint64_t hash_of(const void* data, size_t bytes) { /* FNV-1a */
    const unsigned char* at = data;
    uint64_t hash = 14695981039346656037u;
    size_t i;
    for (i = 0; i < bytes; ++i) hash = (hash ^ at[i]) * 1099511628211u;
    return hash;
}

static FILE* opened(const char* folder, const char* name, const char* mode) {
    char path[2 * LINE];
    FILE* file;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    file = fopen(path, mode);
    if (!file) {
        fprintf(stderr, "cannot open %s\n", path);
        exit(1);
    }
    return file;
}

static void* needed(size_t bytes) {
    void* memory = calloc(bytes, 1);
    if (!memory) exit(1);
    return memory;
}

/* Edits of one picture: its square, and by seed the tokens and the pixels. */
static void edit(editar_model* model, const editar_model_info* info, const char* name, editar_picture* picture,
                 const char* instruction) {
    const size_t side = (size_t)info->image_size, count = (size_t)info->picture_tokens;
    uint8_t* rgb = needed(side * side * 3);
    int32_t* tokens = needed(count * sizeof(int32_t));
    editar_session* session = NULL;
    uint64_t seed;
    size_t i;
    if (editar_open_session(model, picture, &session) != EDITAR_OK) fail("open_session");
    if (editar_get_source(session, rgb, tokens) != EDITAR_OK) fail("get_source");
    printf("square %s %016llx\n", name, (unsigned long long)hash_of(rgb, side * side * 3));
    printf("source %s %016llx\n", name, (unsigned long long)hash_of(tokens, count * sizeof(int32_t)));
    for (seed = 1; seed <= 2; ++seed) {
        editar_sampling sampling;
        editar_request request;
        editar_output output;
        memset(&sampling, 0, sizeof sampling);
        memset(&request, 0, sizeof request);
        memset(&output, 0, sizeof output);
        sampling.size = sizeof sampling;
        sampling.seed = seed;
        request.size = sizeof request;
        request.instruction = instruction;
        request.sampling = &sampling;
        output.size = sizeof output;
        output.tokens = tokens;
        output.rgb = rgb;
        if (editar_edit(session, &request, &output) != EDITAR_OK) fail("edit");
        printf("tokens %s-%d", name, (int)seed);
        for (i = 0; i < count; ++i) printf(" %d", (int)tokens[i]);
        printf("\npixels %s-%d %016llx\n", name, (int)seed, (unsigned long long)hash_of(rgb, side * side * 3));
    }
    editar_close_session(session);
    free(rgb);
    free(tokens);
}

/* Draws from logits that a linear congruential generator makes. */
static void draw(void) {
    enum { VOCABULARY = 1000, DRAWS = 2000 };
    static const double top_ps[] = {1.0, 0.9, 0.5};
    float* logits = needed(VOCABULARY * sizeof(float));
    int32_t* tokens = needed(DRAWS * sizeof(int32_t));
    uint64_t state = 1;
    int kind, n, i;
    for (kind = 0; kind < 6; ++kind) {
        editar_sampling sampling;
        memset(&sampling, 0, sizeof sampling);
        sampling.size = sizeof sampling;
        sampling.temperature = 0.3 + 0.4 * kind;
        sampling.top_p = top_ps[kind % 3];
        sampling.top_k = kind < 3 ? 50 : EDITAR_TOP_K_OFF;
        sampling.noise = kind % 2 ? EDITAR_NOISE_GUMBEL : EDITAR_NOISE_UNIFORM;
        for (n = 0; n < DRAWS; ++n) {
            for (i = 0; i < VOCABULARY; ++i) {
                state = state * 6364136223846793005u + 1442695040888963407u;
                logits[i] = (float)((double)(state >> 40) / 1048576.0);
            }
            sampling.seed = (uint64_t)n + 1;
            if (editar_sample(logits, VOCABULARY, &sampling, n, &tokens[n]) != EDITAR_OK) fail("sample");
        }
        printf("draws %d %016llx\n", kind, (unsigned long long)hash_of(tokens, DRAWS * sizeof(int32_t)));
    }
    free(logits);
    free(tokens);
}

int main(int count, char** arguments) {
    editar_model* model = NULL;
    editar_model_options options;
    editar_model_info info;
    FILE* file;
    char line[LINE];
    int number = 0;
    if (count != 4) return 2;
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.threads = 1;
    options.device = "cpu";
    options.onnxruntime_path = arguments[2];
    if (editar_open_model(arguments[1], &options, &model) != EDITAR_OK) fail("open_model");
    memset(&info, 0, sizeof info);
    info.size = sizeof info;
    if (editar_get_model_info(model, &info) != EDITAR_OK) fail("get_model_info");
    printf("backend %s\n", info.backend);
    draw();
    file = opened(arguments[3], "texts", "rb");
    for (; fgets(line, sizeof line, file); ++number) {
        int32_t ids[LINE], length = 0;
        line[strcspn(line, "\n")] = 0;
        if (editar_tokenize(model, NULL, line, ids, LINE, &length) != EDITAR_OK) fail("tokenize");
        printf("ids %d %d %016llx\n", number, (int)length,
               (unsigned long long)hash_of(ids, (size_t)(length < LINE ? length : LINE) * sizeof(int32_t)));
    }
    fclose(file);
    file = opened(arguments[3], "list", "rb");
    while (fgets(line, sizeof line, file)) {
        char name[256];
        int width, height, at = 0;
        editar_picture picture;
        FILE* raw;
        line[strcspn(line, "\n")] = 0;
        if (sscanf(line, "%255s %d %d %n", name, &width, &height, &at) != 3) return 2;
        memset(&picture, 0, sizeof picture);
        picture.size = sizeof picture;
        picture.width = width;
        picture.height = height;
        picture.channels = EDITAR_RGB;
        picture.data = needed((size_t)width * (size_t)height * 3);
        raw = opened(arguments[3], name, "rb");
        if (fread(picture.data, (size_t)width * 3, (size_t)height, raw) != (size_t)height) return 2;
        fclose(raw);
        edit(model, &info, name, &picture, line + at);
        free(picture.data);
    }
    fclose(file);
    editar_close_model(model);
    return 0;
}
