/* Files that editar-cli reads. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

enum { MOST_STATES = 64 << 20, MOST_PICTURE = 1 << 30 };

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

int read_picture(const char* path, int32_t channels, editar_picture* picture, char digits[65]) {
    size_t bytes;
    int code = 0;
    editar_status status;
    unsigned char* file = read_file(path, MOST_PICTURE, &bytes);
    if (file == NULL) return 1;
    memset(picture, 0, sizeof *picture);
    picture->size = sizeof *picture;
    picture->channels = channels;
    status = editar_sha256(file, bytes, digits);
    if (status == EDITAR_OK) status = editar_read_picture(file, bytes, picture);
    if (status == EDITAR_OK) {
        picture->data = malloc((size_t)picture->width * (size_t)picture->height * (size_t)picture->channels);
        if (picture->data == NULL)
            code = complain(1, "%s: there is not enough memory for its pixels", path);
        else
            status = editar_read_picture(file, bytes, picture);
    }
    if (status != EDITAR_OK) code = complain(1, "%s: %s", path, editar_last_error());
    free(file);
    return code;
}

float* read_states(const char* path, size_t count) {
    size_t bytes, header;
    float* states;
    unsigned char* file = read_file(path, MOST_STATES, &bytes);
    if (file == NULL) return NULL;
    header = bytes < 12 ? 0 : file[6] == 1 ? 10u + file[8] + 256u * file[9] : 0;
    if (header > 10 && header <= bytes) file[header - 1] = '\0'; /* its last byte is a new line */
    if (header <= 10 || memcmp(file, "\x93NUMPY", 6) != 0 || header > bytes ||
        bytes - header != count * sizeof(float) || strstr((char*)file + 10, "'<f4'") == NULL ||
        strstr((char*)file + 10, "'fortran_order': False") == NULL) {
        complain(1, "%s must be a .npy of %u little-endian float32 (states of one text)", path, (unsigned)count);
        free(file);
        return NULL;
    }
    states = malloc(bytes - header);
    if (states == NULL)
        complain(1, "%s: there is not enough memory for it", path);
    else
        memcpy(states, file + header, bytes - header);
    free(file);
    return states;
}
