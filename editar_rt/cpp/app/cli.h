/* The parts of editar-cli. A function that returns an int returns 0, or an exit code after a message to stderr: 1, 2
 * for a bad option. */
#ifndef EDITAR_CLI_H
#define EDITAR_CLI_H

#include <signal.h>
#include <stddef.h>
#include <stdint.h>

#include "editar/editar.h"

enum { MOST_PATH = 4096 }; /* bytes of a path, with a seed and the zero */

typedef struct {
    const char* words[3]; /* BUNDLE, and for edit IMAGE and INSTRUCTION */
    int word_count;
    const char *output, *task, *mask, *text_states;
    int json, check, metadata;
    int32_t count; /* of -n; 0 is none */
    editar_model_options model;
    editar_sampling sampling;
    editar_request request;
    editar_bench_plan plan;
    double* scales; /* of a schedule; freed by main */
    int scale_count;
} arguments;

extern volatile sig_atomic_t signalled; /* the signal that asks for an end, and for editar_request.stop: not 0 then */
extern volatile int32_t stop;

/* Prints "editar-cli: " and a line to stderr. Returns `code`. */
int complain(int code, const char* format, ...);
/* Prints the sentence of a failed call, and returns its exit code. */
int failed(editar_status status);

int read_arguments(int count, char** words, arguments* all);

/* A picture file, with memory that is the caller's, and its SHA-256. `channels`: 0, or EDITAR_GREY for a mask. */
int read_picture(const char* path, int32_t channels, editar_picture* picture, char digits[65]);
/* Text states from NumPy's .npy: `count` float32 as [1, T, C] or [T, C]. NULL, with a message, if it is anything else.
 */
float* read_states(const char* path, size_t count);

/* Whether the folder of a file is there and may be written to. */
int check_folder(const char* path);
/* Whether a file may be written: its folder, and that it is none of the files that are read. `inputs` end with NULL. */
int check_output(const char* path, const char* bundle, const char* const* inputs);

int edit_command(const arguments* all, editar_model* model, const editar_model_info* info);

#endif
