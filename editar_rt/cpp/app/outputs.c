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

/* The folder of a file. */
static void folder_of(const char* path, char folder[MOST_PATH]) {
    const char* slash = strrchr(path, '/');
    if (slash == NULL)
        snprintf(folder, MOST_PATH, ".");
    else
        snprintf(folder, MOST_PATH, "%.*s", slash == path ? 1 : (int)(slash - path), path);
}

int check_folder(const char* path) {
    char folder[MOST_PATH];
    struct stat status;
    folder_of(path, folder);
    if (stat(folder, &status) != 0 || !S_ISDIR(status.st_mode))
        return complain(1, "cannot write %s: there is no folder %s", path, folder);
    if (access(folder, W_OK | X_OK) != 0) return complain(1, "cannot write %s: permission denied", path);
    return 0;
}

/* Whether the manifest of a bundle lists a file. `path` is its real one, and so is `home`, the bundle's. */
static int is_listed(const char* path, const char* home) {
    const size_t length = strlen(home);
    char name[MOST_PATH];
    const char* json;
    if (strncmp(path, home, length) != 0 || path[length] != '/') return 0;
    snprintf(name, sizeof name, "\"%s\"", path + length + 1);
    return editar_describe_bundle(home, 0, &json) == EDITAR_OK && strstr(json, name) != NULL;
}

/* Whether a file is one of a bundle's, by its own name or, if it is a link, by that of its target. */
static int is_of_bundle(const char* path, const char* bundle) {
    char folder[MOST_PATH], named[2 * MOST_PATH];
    char *home = realpath(bundle, NULL), *target = realpath(path, NULL), *own;
    const char* slash = strrchr(path, '/');
    int found = 0;
    folder_of(path, folder);
    own = realpath(folder, NULL);
    if (home != NULL && target != NULL && own != NULL) {
        snprintf(named, sizeof named, "%s/%s", own, slash == NULL ? path : slash + 1);
        found = is_listed(named, home) || is_listed(target, home);
    }
    free(home);
    free(target);
    free(own);
    return found;
}

int check_output(const char* path, const char* bundle, const char* const* inputs) {
    struct stat own, other;
    if (stat(path, &own) != 0) return check_folder(path);
    if (S_ISDIR(own.st_mode)) return complain(1, "cannot write %s: it is a folder", path);
    if (!S_ISREG(own.st_mode)) return 0; /* a device or FIFO is written into */
    for (; *inputs != NULL; ++inputs)
        if (stat(*inputs, &other) == 0 && own.st_dev == other.st_dev && own.st_ino == other.st_ino)
            return complain(2, "%s would overwrite the input %s; give another name", path, *inputs);
    if (is_of_bundle(path, bundle))
        return complain(2, "%s would overwrite a file of the bundle %s; give another name", path, bundle);
    if (access(path, W_OK) != 0) return complain(1, "cannot write %s: permission denied", path);
    return check_folder(path);
}

#endif
