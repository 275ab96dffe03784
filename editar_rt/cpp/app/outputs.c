/* Files that editar-cli writes: what is wrong with a name is said before the work, as Python's command does. */
#if !defined(_WIN32)
#define _XOPEN_SOURCE 700
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

#if defined(_WIN32)

int check_folder(const char* path) {
    (void)path; /* writing says it */
    return 0;
}

int check_output(const char* path, const char* bundle, const char* const* inputs) {
    (void)path;
    (void)bundle;
    (void)inputs;
    return 0;
}

#else

#include <sys/stat.h>
#include <unistd.h>

int check_folder(const char* path) {
    char folder[MOST_PATH];
    const char* slash = strrchr(path, '/');
    struct stat status;
    const int length = slash == NULL ? 0 : slash == path ? 1 : (int)(slash - path);
    snprintf(folder, sizeof folder, "%.*s", length, path);
    if (length == 0) strcpy(folder, ".");
    if (stat(folder, &status) != 0 || !S_ISDIR(status.st_mode))
        return complain(1, "cannot write %s: there is no folder %s", path, folder);
    if (access(folder, W_OK | X_OK) != 0) return complain(1, "cannot write %s: permission denied", path);
    return 0;
}

/* Whether a file is in a folder, however deep. */
static int is_within(const char* path, const char* folder) {
    char *file = realpath(path, NULL), *home = realpath(folder, NULL);
    const size_t length = home == NULL ? 0 : strlen(home);
    const int within = file != NULL && home != NULL && strncmp(file, home, length) == 0 && file[length] == '/';
    free(file);
    free(home);
    return within;
}

int check_output(const char* path, const char* bundle, const char* const* inputs) {
    struct stat own, other;
    if (stat(path, &own) != 0) return check_folder(path);
    if (S_ISDIR(own.st_mode)) return complain(1, "cannot write %s: it is a folder", path);
    if (!S_ISREG(own.st_mode)) return 0; /* a device or FIFO is written into */
    for (; *inputs != NULL; ++inputs)
        if (stat(*inputs, &other) == 0 && own.st_dev == other.st_dev && own.st_ino == other.st_ino)
            return complain(2, "%s would overwrite the input %s; give another name", path, *inputs);
    if (is_within(path, bundle))
        return complain(2, "%s would overwrite a file of the bundle %s; give another name", path, bundle);
    if (access(path, W_OK) != 0) return complain(1, "cannot write %s: permission denied", path);
    return check_folder(path);
}

#endif
