/* The options of editar-cli. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

/* A number, which may be NaN or infinite. */
static int read_double(const char* name, const char* text, double* value) {
    char* end;
    *value = strtod(text, &end);
    if (end == text || *end != '\0') return complain(2, "%s must be a number, got %s", name, text);
    return 0;
}

/* An integer, or the nearest that a long long has. */
static int read_long(const char* text, long long* value) {
    char* end;
    *value = strtoll(text, &end, 10);
    return end == text || *end != '\0' ? 2 : 0;
}

static int read_int(const char* name, const char* text, int32_t least, int32_t* value) {
    long long parsed;
    if (read_long(text, &parsed) != 0 || parsed < least || parsed > INT32_MAX)
        return complain(2, "%s must be an integer from %d to %d, got %s", name, (int)least, (int)INT32_MAX, text);
    *value = (int32_t)parsed;
    return 0;
}

/* An integer of which all above `most` mean the same. */
static int read_at_most(const char* name, const char* text, int32_t least, int32_t most, int32_t* value) {
    long long parsed;
    if (read_long(text, &parsed) != 0 || parsed < least)
        return complain(2, "%s must be an integer of %d or more, got %s", name, (int)least, text);
    *value = parsed > most ? most : (int32_t)parsed;
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
    all->sampling.cfg_shape = EDITAR_CFG_CONSTANT; /* nothing stays of an option before this one */
    all->sampling.cfg_last = 0;
    all->sampling.cfg_scales = NULL;
    if (colon == NULL) {
        if (read_double("cfg_scale", text, &all->sampling.cfg_scale) != 0) return 2;
        if (!(all->sampling.cfg_scale >= 0 && all->sampling.cfg_scale <= 1e6))
            return complain(2, "cfg_scale must be 0 to 1e+06, got %s", text);
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
    all->sampling.cfg_shape = strncmp(text, "linear:", 7) == 0 ? EDITAR_CFG_LINEAR : EDITAR_CFG_COSINE;
    if ((all->sampling.cfg_shape == EDITAR_CFG_COSINE && strncmp(text, "cosine:", 7) != 0) || all->scale_count != 2)
        return complain(2, "cfg_scale must be a number, linear:FIRST,LAST, cosine:FIRST,LAST or values:A,B,..., got %s",
                        text);
    all->sampling.cfg_scale = all->scales[0];
    all->sampling.cfg_last = all->scales[1];
    return 0;
}

static int read_interval(const char* text, editar_sampling* sampling) {
    const char* comma = strchr(text, ',');
    char first[32];
    int32_t number = 0;
    if (comma == NULL) { /* the last decode step with guidance; token 0 comes from the prefill */
        if (read_at_most("cfg_interval", text, -1, INT32_MAX - 2, &number) != 0) return 2;
        sampling->cfg_start = 0;
        sampling->cfg_stop = number == -1 ? EDITAR_TO_THE_END : number + 2;
        sampling->flags |= EDITAR_INTERVAL_IS_STEP;
        return 0;
    }
    if ((size_t)(comma - text) >= sizeof first) return complain(2, "cfg_interval must be START,STOP, got %s", text);
    memcpy(first, text, (size_t)(comma - text));
    first[comma - text] = '\0';
    sampling->flags &= ~EDITAR_INTERVAL_IS_STEP;
    if (read_at_most("cfg_interval", first, 0, INT32_MAX - 1, &sampling->cfg_start) != 0) return 2;
    if (read_at_most("cfg_interval", comma + 1, 0, INT32_MAX, &sampling->cfg_stop) != 0) return 2;
    if (sampling->cfg_start >= sampling->cfg_stop)
        return complain(2, "cfg_interval must be START,STOP with START below STOP, got %s", text);
    return 0;
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

int read_arguments(int count, char** words, arguments* all) {
    int at, all_are_words = 0;
    int32_t number = 0;
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
        if (all_are_words || word[0] != '-' || word[1] == '\0') {
            if (all->word_count == 3) return complain(2, "too many arguments: %s", word);
            all->words[all->word_count++] = word;
        } else if (strcmp(word, "--") == 0) {
            all_are_words = 1;
        } else if (strcmp(word, "--json") == 0) {
            all->json = 1;
        } else if (strcmp(word, "--check") == 0) {
            all->check = 1;
        } else if (strcmp(word, "--no-metadata") == 0) {
            all->metadata = 0;
        } else if (strcmp(word, "--no-composite") == 0) {
            all->request.no_composite = 1;
        } else if (strcmp(word, "--no-cache") == 0) {
            all->model.cache_folder = "";
        } else if (strcmp(word, "--greedy") == 0) {
            all->sampling.flags |= EDITAR_GREEDY;
        } else if (VALUE("-o") || VALUE("--output")) {
            all->output = value;
            if (strlen(value) >= MOST_PATH - 32) return complain(2, "the name of the output is too long");
        } else if (VALUE("--task")) {
            all->task = value;
        } else if (VALUE("--mask")) {
            all->mask = value;
        } else if (VALUE("--text-states")) {
            all->text_states = value;
        } else if (VALUE("--device")) {
            all->model.device = value;
        } else if (VALUE("--onnxruntime")) {
            all->model.onnxruntime_path = value;
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
            if (bad == 0 && !(all->sampling.temperature > 0 && isfinite(all->sampling.temperature)))
                return complain(2, "temperature must be a finite number above 0, got %s", value);
        } else if (VALUE("--top-k")) {
            bad = read_at_most("top_k", value, 0, INT32_MAX, &all->sampling.top_k);
            if (all->sampling.top_k == 0) all->sampling.top_k = EDITAR_TOP_K_OFF;
        } else if (VALUE("--top-p")) {
            bad = read_double("top_p", value, &all->sampling.top_p);
            if (bad == 0 && !(all->sampling.top_p > 0 && all->sampling.top_p <= 1))
                return complain(2, "top_p must be in (0, 1], got %s", value);
        } else if (VALUE("--noise")) {
            all->sampling.noise = strcmp(value, "gumbel") == 0 ? EDITAR_NOISE_GUMBEL : EDITAR_NOISE_UNIFORM;
            if (all->sampling.noise == EDITAR_NOISE_UNIFORM && strcmp(value, "uniform") != 0)
                return complain(2, "noise must be uniform or gumbel, got %s", value);
        } else if (VALUE("--speculate")) {
            if (strcmp(value, "auto") == 0)
                all->request.speculate = EDITAR_SPECULATE_AUTO;
            else
                bad = read_int("speculate", value, 2, &all->request.speculate);
        } else if (VALUE("--mask-margin")) {
            bad = read_at_most("mask_margin", value, 0, INT32_MAX, &number);
            all->request.mask_margin = number == 0 ? -1 : number;
        } else if (VALUE("-n")) {
            bad = read_int("n", value, 1, &all->count);
            if (bad == 0 && all->count > EDITAR_MAX_VARIANTS)
                return complain(2, "n must be 1 to %d, got %s", EDITAR_MAX_VARIANTS, value);
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
