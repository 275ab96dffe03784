/* Opens, edits, stops and closes a bundle many times: what leaks or is used after it is freed shows under sanitizers.
 * usage: lasting BUNDLE TIMES; memory must not grow from the first tenth of the rounds to the end. */
#include <editar/editar.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

static int32_t stop_at;

static int32_t EDITAR_CALL on_progress(void* user, int32_t done, int32_t total, const int32_t* tokens) {
    (void)user;
    (void)total;
    (void)tokens;
    return stop_at > 0 && done >= stop_at;
}

static int32_t EDITAR_CALL on_preview(void* user, int32_t done, int32_t total, const editar_picture* picture) {
    (void)done;
    (void)total;
    ++*(int*)user;
    return picture->width < 1;
}

static int fail(const char* what) {
    fprintf(stderr, "%s: %s\n", what, editar_last_error());
    exit(1);
}

/* One life of a model: edits of several kinds, some of them stopped, some refused. */
static void live(const char* bundle, int round) {
    editar_model* model = NULL;
    editar_session* session = NULL;
    editar_model_options options;
    editar_model_info info;
    editar_picture picture, mask;
    editar_sampling sampling;
    editar_request request;
    editar_output output;
    editar_status status;
    const char* const* texts;
    int previews = 0, kind;
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.threads = 1 + round % 2;
    if (editar_open_model(bundle, &options, &model) != EDITAR_OK) fail("open_model");
    info.size = sizeof info;
    if (editar_get_model_info(model, &info) != EDITAR_OK) fail("get_model_info");
    memset(&picture, 0, sizeof picture);
    picture.size = sizeof picture;
    picture.width = 90;
    picture.height = 70 + round % 60;
    picture.channels = EDITAR_RGB;
    picture.data = calloc((size_t)picture.width * (size_t)picture.height, 3);
    mask = picture;
    mask.channels = EDITAR_GREY;
    memset(picture.data + 300, 255, 3000);
    if (editar_open_session(model, &picture, &session) != EDITAR_OK) fail("open_session");
    memset(&output, 0, sizeof output);
    output.size = sizeof output;
    output.tokens = malloc(3 * (size_t)info.picture_tokens * sizeof(int32_t));
    output.rgb = malloc(3 * (size_t)info.image_size * (size_t)info.image_size * 3);
    for (kind = round % 4; kind < 5; kind += 4 - kind % 4) { /* one kind of edit, and the one that is refused */
        memset(&sampling, 0, sizeof sampling);
        sampling.size = sizeof sampling;
        sampling.seed = (uint64_t)round + 1;
        memset(&request, 0, sizeof request);
        request.size = sizeof request;
        request.instruction = kind == 3 ? "\xff not UTF-8, and \xc3" : "make the ball green";
        request.sampling = &sampling;
        request.on_progress = on_progress;
        request.on_preview = round % 10 == 0 ? on_preview : NULL; /* each costs a run of the VQ decoder */
        request.preview_share = 1;
        request.user = &previews;
        request.variants = kind == 1 ? 3 : 1;
        request.mask = kind == 2 ? &mask : NULL;
        request.task = kind == 4 ? "paint" : NULL;
        stop_at = kind == 0 ? 1 + round % info.picture_tokens : 0;
        status = editar_edit(session, &request, &output);
        if (kind == 4 ? status != EDITAR_BAD_ARGUMENT : status < 0) fail("edit");
        if (editar_get_texts(session, 0, &texts) != EDITAR_OK || texts == NULL) fail("get_texts");
    }
    if (round % 2 == 0) editar_close_session(session);
    editar_close_model(model);
    if (round % 2 == 1) editar_close_session(session);
    free(output.tokens);
    free(output.rgb);
    free(picture.data);
    if (editar_open_model("/nowhere", &options, &model) >= 0 || model != NULL) fail("opened nothing");
}

static long peak(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;
}

int main(int count, char** words) {
    int round, times = count == 3 ? atoi(words[2]) : 0;
    long early = 0;
    if (times < 1) return 2;
    for (round = 0; round < times; ++round) {
        live(words[1], round);
        if (round == times / 10) early = peak();
    }
    printf("%ld %ld\n", early, peak());
    return 0;
}
