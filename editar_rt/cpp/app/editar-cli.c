/* editar-cli: edits pictures with a bundle, shows it, verifies it and measures it. Plain C over editar.h, with the JSON
 * of Python's command. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static const char HELP[] =
    "editar-cli edit BUNDLE IMAGE INSTRUCTION -o OUT.png [options]\n"
    "editar-cli info BUNDLE [--check]\n"
    "editar-cli verify BUNDLE [options]\n"
    "editar-cli bench BUNDLE [--repeats N] [--warmup N] [--at N] [--steps N] [options]\n"
    "\n"
    "for all:    --json (one JSON document as the last line)  --device auto|cpu|cuda|tensorrt  --threads N\n"
    "            --onnxruntime FILE (its library; or $EDITAR_ONNXRUNTIME)  --no-cache (prepacked weights)\n"
    "sampling:   --seed N  --cfg-scale S|linear:A,B|cosine:A,B|values:A,B,...  --cfg-interval N|START,STOP\n"
    "            --temperature T  --top-k K  --top-p P  --greedy  --noise uniform|gumbel\n"
    "edit:       --task edit|depth|canny|segmentation  -n COUNT (OUT-SEED.png for each seed; no contact sheet)\n"
    "            --mask PICTURE  --mask-margin N  --no-composite  --text-states FILE.npy  --speculate N|auto\n"
    "            --no-metadata\n"
    "An INSTRUCTION that begins with - follows the word --, after all options.\n";

volatile sig_atomic_t signalled;
volatile int32_t stop;

static void on_signal(int number) {
    signalled = number;
    stop = 1;
    signal(number, SIG_DFL); /* a second one ends the program immediately */
}

/* What is ignored, as in the background of a script, stays ignored. */
static void watch(int number) {
    if (signal(number, on_signal) == SIG_IGN) signal(number, SIG_IGN);
}

int complain(int code, const char* format, ...) {
    va_list values;
    va_start(values, format);
    fputs("editar-cli: ", stderr);
    vfprintf(stderr, format, values);
    fputc('\n', stderr);
    va_end(values);
    return code;
}

int failed(editar_status status) {
    return complain(status == EDITAR_BAD_ARGUMENT ? 2 : 1, "%s", editar_last_error());
}

static int info_command(const arguments* all) {
    const char* json;
    const editar_status status = editar_describe_bundle(all->words[0], all->check, &json);
    if (status != EDITAR_OK) return failed(status);
    puts(json);
    return 0;
}

static int verify(editar_model* model) {
    const char *json, *fault;
    const editar_status status = editar_verify(model, &fault, &json);
    if (status != EDITAR_OK) return failed(status);
    puts(json);
    return fault == NULL ? 0 : complain(1, "%s", fault);
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

static int run(int count, char** words) {
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
    if (code == 0 && wanted == 3 && all.output == NULL)
        code = complain(2, "edit needs -o OUT.png");
    else if (code == 0 && wanted == 3 &&
             (strlen(all.output) < 4 || strcmp(all.output + strlen(all.output) - 4, ".png") != 0))
        code = complain(2, "a picture's name must end with .png, got %s", all.output);
    if (code == 0 && strcmp(command, "info") == 0) {
        code = info_command(&all);
    } else if (code == 0) {
        if (wanted == 3) { /* the other commands look at no stop flag */
            watch(SIGINT);
            watch(SIGTERM);
        }
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
            code = wanted == 3                      ? edit_command(&all, model, &info)
                   : strcmp(command, "verify") == 0 ? verify(model)
                                                    : bench(&all, model);
        editar_close_model(model);
    }
    free(all.scales);
    return code;
}

int main(int count, char** words) {
    const int code = run(count, words);
    if (fflush(stdout) != 0 || ferror(stdout)) return complain(1, "what was to be printed cannot be written");
    return code;
}
