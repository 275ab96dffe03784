/* A product in C99 that edits a picture with the installed library. It is built as C, with every warning an error. */
#include <editar/editar.h>
#include <stdio.h>
#include <stdlib.h>

static int fail(const char* what) {
    fprintf(stderr, "%s: %s\n", what, editar_last_error());
    return 1;
}

int main(int count, char** words) {
    editar_model* model = NULL;
    editar_session* session = NULL;
    editar_model_options options = {0};
    editar_model_info info = {0};
    editar_picture grey_square = {0};
    editar_request request = {0};
    editar_output output = {0};
    long n;
    if (count != 3) return 2;
    options.size = sizeof options;
    options.threads = 1;
    if (editar_open_model(words[1], &options, &model) != EDITAR_OK) return fail("open_model");
    info.size = sizeof info;
    if (editar_get_model_info(model, &info) != EDITAR_OK) return fail("get_model_info");
    grey_square.size = sizeof grey_square;
    grey_square.width = grey_square.height = info.image_size;
    grey_square.channels = EDITAR_RGB;
    grey_square.data = malloc((size_t)info.image_size * (size_t)info.image_size * 3);
    if (grey_square.data == NULL) return 1;
    for (n = 0; n < (long)info.image_size * info.image_size * 3; ++n) grey_square.data[n] = 128;
    if (editar_open_session(model, &grey_square, &session) != EDITAR_OK) return fail("open_session");
    request.size = sizeof request;
    request.instruction = words[2];
    output.size = sizeof output;
    output.tokens = malloc((size_t)info.picture_tokens * sizeof *output.tokens);
    if (output.tokens == NULL) return 1;
    if (editar_edit(session, &request, &output) != EDITAR_OK) return fail("edit");
    for (n = 0; n < info.picture_tokens; ++n) printf("%d ", (int)output.tokens[n]);
    free(output.tokens);
    free(grey_square.data);
    editar_close_session(session);
    editar_close_model(model);
    return 0;
}
