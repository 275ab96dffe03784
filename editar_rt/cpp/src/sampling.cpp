#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <set>
#include <string_view>

#include "error.h"
#include "exact.h"
#include "facts.h"

namespace editar {

namespace {

constexpr double PI = 3.141592653589793;

void require(bool good, const std::string& name, const std::string& allowed, const std::string& value) {
    if (!good) throw option_error(name + " must be " + allowed + ", got " + value);
}

void check_scale(double scale) {
    if (!(scale >= 0 && scale <= facts::MAX_SCALE))
        throw option_error("cfg_scale must be 0 to " + python_g(facts::MAX_SCALE) + ", got " + python_repr(scale));
}

void check(const Sampling& s) {
    check_scale(s.cfg_scale);
    if (s.shape != EDITAR_CFG_CONSTANT) check_scale(s.cfg_last);
    for (double each : s.cfg_scales) check_scale(each);
    const bool all = s.cfg_stop == -1;
    require(s.cfg_start >= 0 && (all || s.cfg_start < s.cfg_stop), "the guided tokens",
            "cfg_start to cfg_stop - 1 with 0 <= cfg_start < cfg_stop",
            std::to_string(s.cfg_start) + " to " + std::to_string(s.cfg_stop));
    require(std::isfinite(s.temperature) && s.temperature > 0, "temperature", "a finite number above 0",
            python_repr(s.temperature));
    require(s.top_k >= 0, "top_k", "0 (off) or more", std::to_string(s.top_k));
    require(std::isfinite(s.top_p) && s.top_p > 0 && s.top_p <= 1, "top_p", "in (0, 1]", python_repr(s.top_p));
}

// A number as Python's float() reads it: digits may be grouped with underscores.
bool read_float(std::string_view text, double& number) {
    const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
    while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
    while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
    std::string plain;  // without underscores
    for (size_t n = 0; n < text.size(); ++n) {
        if (text[n] != '_')
            plain += text[n];
        else if (n == 0 || n + 1 == text.size() || !is_digit(text[n - 1]) || !is_digit(text[n + 1]))
            return false;
    }
    size_t at = !plain.empty() && (plain[0] == '+' || plain[0] == '-') ? 1 : 0, digits = 0;
    for (; at < plain.size() && is_digit(plain[at]); ++at) ++digits;
    if (at < plain.size() && plain[at] == '.')
        for (++at; at < plain.size() && is_digit(plain[at]); ++at) ++digits;
    if (digits == 0) return false;  // also of "inf" and "nan", which no setting allows
    if (at < plain.size() && (plain[at] == 'e' || plain[at] == 'E')) {
        at += at + 1 < plain.size() && (plain[at + 1] == '+' || plain[at + 1] == '-') ? 2 : 1;
        if (at == plain.size()) return false;
        while (at < plain.size() && is_digit(plain[at])) ++at;
    }
    if (at != plain.size()) return false;
    number = read_number(plain);
    return true;
}

// A guidance scale from its text: a number, or SHAPE:VALUE,… Whether it is one.
bool read_scale(std::string_view text, Sampling& sampling) {
    const size_t colon = text.find(':');
    if (colon == std::string_view::npos) return read_float(text, sampling.cfg_scale);
    std::string shape(text.substr(0, colon));
    while (!shape.empty() && shape.front() == ' ') shape.erase(0, 1);
    while (!shape.empty() && shape.back() == ' ') shape.pop_back();
    std::vector<double> values;
    for (size_t at = colon + 1, end = 0; end != std::string_view::npos; at = end + 1) {
        end = text.find(',', at);
        double value = 0;
        if (!read_float(text.substr(at, end == std::string_view::npos ? end : end - at), value)) return false;
        values.push_back(value);
    }
    if (shape == "values") {
        sampling.cfg_scales = std::move(values);
        return true;
    }
    if ((shape != "linear" && shape != "cosine") || values.size() != 2) return false;
    sampling.shape = shape == "linear" ? EDITAR_CFG_LINEAR : EDITAR_CFG_COSINE;
    sampling.cfg_scale = values[0];
    sampling.cfg_last = values[1];
    return true;
}

// The shortest digits that read back as the same number, without a sign: "d.ddd", and the decimal exponent.
std::string shortest(double number, int& exponent) {
    char text[40];
    for (int digits = 0; digits < 17; ++digits) {
        std::snprintf(text, sizeof text, "%.*e", digits, number);
        if (std::strtod(text, nullptr) == number) break;
    }
    std::string mantissa = text;
    const size_t e = mantissa.find('e');
    exponent = static_cast<int>(std::strtol(mantissa.c_str() + e + 1, nullptr, 10));
    std::string digits;
    for (char c : mantissa.substr(0, e))
        if (c >= '0' && c <= '9') digits += c;  // a locale may have another decimal point
    while (digits.size() > 1 && digits.back() == '0') digits.pop_back();
    return digits;
}

std::string with_exponent(const std::string& digits, int exponent) {
    char power[16];
    std::snprintf(power, sizeof power, "e%c%02d", exponent < 0 ? '-' : '+', std::abs(exponent));
    return digits.substr(0, 1) + (digits.size() > 1 ? "." + digits.substr(1) : "") + power;
}

std::string with_point(const std::string& digits, int exponent, bool fraction) {
    if (exponent < 0) return "0." + std::string(-exponent - 1, '0') + digits;
    const int whole = exponent + 1, size = static_cast<int>(digits.size());
    if (size <= whole) return digits + std::string(whole - size, '0') + (fraction ? ".0" : "");
    return digits.substr(0, whole) + "." + digits.substr(whole);
}

}  // namespace

std::string python_repr(double number) {
    if (std::isnan(number)) return "nan";
    const std::string sign = std::signbit(number) ? "-" : "";
    if (std::isinf(number)) return sign + "inf";
    if (number == 0) return sign + "0.0";
    int exponent = 0;
    const std::string digits = shortest(std::fabs(number), exponent);
    return sign +
           (exponent < -4 || exponent >= 16 ? with_exponent(digits, exponent) : with_point(digits, exponent, true));
}

std::string python_g(double number) {
    if (number == 0) return std::signbit(number) ? "-0" : "0";
    char text[40];
    std::snprintf(text, sizeof text, "%.5e", std::fabs(number));
    std::string mantissa = text, digits;
    const size_t e = mantissa.find('e');
    const int exponent = static_cast<int>(std::strtol(mantissa.c_str() + e + 1, nullptr, 10));
    for (char c : mantissa.substr(0, e))
        if (c >= '0' && c <= '9') digits += c;
    while (digits.size() > 1 && digits.back() == '0') digits.pop_back();
    return (std::signbit(number) ? "-" : "") +
           (exponent < -4 || exponent >= 6 ? with_exponent(digits, exponent) : with_point(digits, exponent, false));
}

Sampling::Sampling()
    : cfg_scale(facts::CFG_SCALE), temperature(facts::TEMPERATURE), top_p(facts::TOP_P), top_k(facts::TOP_K) {}

Sampling Sampling::of_bundle(const Json& given, const std::string& folder) {
    std::set<std::string> unknown;
    for (const auto& [name, value] : given.members)
        if (std::find(std::begin(facts::SAMPLING_FIELDS), std::end(facts::SAMPLING_FIELDS), name) ==
            std::end(facts::SAMPLING_FIELDS))
            unknown.insert(name);
    std::string names;
    for (const std::string& name : unknown) names += (names.empty() ? "" : ", ") + name;
    if (!names.empty()) throw bundle_error("the bundle's sampling defaults have unknown fields: " + names);
    try {
        Sampling own;
        for (const char* name : facts::SAMPLING_FIELDS)
            if (const Json* value = given.find(name)) own.take(name, *value);
        return own;
    } catch (const Error& e) {
        throw bundle_error("a sampling default of the bundle " + folder + " is not allowed: " + e.what());
    }
}

// One of the bundle's defaults. Throws EDITAR_BAD_ARGUMENT.
void Sampling::take(const std::string& name, const Json& value) {
    const auto need = [&](bool good, const char* allowed) { require(good, name, allowed, shown(value, 60)); };
    const auto integer = [&](const char* allowed) {
        need(value.is_integer(), allowed);
        return value.integer();
    };
    const auto number = [&](const char* allowed) {
        need(value.kind == Json::Kind::number, allowed);
        return value.number();
    };
    if (name == "cfg_scale") {
        const bool read =
            value.kind == Json::Kind::number ? (cfg_scale = value.number(), true) : read_scale(value.text, *this);
        const auto allowed = [](double scale) { return scale >= 0 && scale <= facts::MAX_SCALE; };
        need(read && allowed(cfg_scale) && allowed(cfg_last) &&
                 std::all_of(cfg_scales.begin(), cfg_scales.end(), allowed),
             facts::ALLOWED_SCALES);
    } else if (name == "cfg_interval") {
        const char* allowed = "-1 or more, or (start, stop)";
        const int64_t last = integer(allowed);
        need(last >= -1, allowed);
        cfg_stop = last == -1 ? -1 : std::min(last, std::numeric_limits<int64_t>::max() - 2) + 2;
    } else if (name == "temperature") {
        const char* allowed = "a finite number above 0";
        temperature = number(allowed);
        need(std::isfinite(temperature) && temperature > 0, allowed);
    } else if (name == "top_k") {
        const char* allowed = "0 (off) or more";
        top_k = integer(allowed);
        need(top_k >= 0, allowed);
    } else if (name == "top_p") {
        const char* allowed = "in (0, 1]";
        top_p = number(allowed);
        need(top_p > 0 && top_p <= 1, allowed);
    } else if (name == "seed") {
        const char* allowed = "0 to 2^64 - 1";
        const int64_t number = integer(allowed);
        need(number >= 0, allowed);
        seed = static_cast<uint64_t>(number);
    } else if (name == "noise") {
        need(value.kind == Json::Kind::string && (value.text == "uniform" || value.text == "gumbel"),
             "uniform or gumbel");
        gumbel = value.text == "gumbel";
    } else {
        need(false, "True or False");  // greedy: the manifest's defaults have no such type
    }
}

Sampling Sampling::with(const editar_sampling* given, int count) const {
    Sampling own = *this;
    if (given == nullptr) return own;
    if (given->cfg_scales != nullptr) {
        if (count == 0) throw option_error("cfg_scales needs a picture; give cfg_scale");
        own.cfg_scales.assign(given->cfg_scales, given->cfg_scales + count);
        own.shape = EDITAR_CFG_CONSTANT;
    } else if (given->cfg_shape != EDITAR_CFG_CONSTANT) {
        if (given->cfg_shape != EDITAR_CFG_LINEAR && given->cfg_shape != EDITAR_CFG_COSINE)
            throw option_error("cfg_shape must be EDITAR_CFG_CONSTANT, EDITAR_CFG_LINEAR or EDITAR_CFG_COSINE, got " +
                               std::to_string(given->cfg_shape));
        own.shape = given->cfg_shape;
        own.cfg_scale = given->cfg_scale;
        own.cfg_last = given->cfg_last;
        own.cfg_scales.clear();
    } else if (given->cfg_last != 0) {
        throw option_error("cfg_last ends a schedule; set cfg_shape to EDITAR_CFG_LINEAR or EDITAR_CFG_COSINE with it");
    } else if (given->cfg_scale != 0) {
        own.cfg_scale = given->cfg_scale;
        own.shape = EDITAR_CFG_CONSTANT;
        own.cfg_scales.clear();
    }
    if (given->cfg_start != 0 || given->cfg_stop != 0) {
        own.cfg_start = given->cfg_start;
        own.cfg_stop =
            given->cfg_stop == EDITAR_TO_THE_END && given->cfg_start != 0 && count > 0 ? count : given->cfg_stop;
        own.interval_is_number =
            own.cfg_start == 0 && (own.cfg_stop == -1 || (given->flags & EDITAR_INTERVAL_IS_STEP) != 0);
    }
    if (given->temperature != 0) own.temperature = given->temperature;
    if (given->top_p != 0) own.top_p = given->top_p;
    if (given->top_k != 0) own.top_k = given->top_k == EDITAR_TOP_K_OFF ? 0 : given->top_k;
    if (given->seed != 0 || (given->flags & EDITAR_SEED_IS_ZERO) != 0) own.seed = given->seed;
    if ((given->flags & ~(EDITAR_GREEDY | EDITAR_NOT_GREEDY | EDITAR_SEED_IS_ZERO | EDITAR_INTERVAL_IS_STEP)) != 0)
        throw option_error("flags of a sampling has unknown bits: " + std::to_string(given->flags));
    if ((given->flags & EDITAR_GREEDY) != 0) own.greedy = true;
    if ((given->flags & EDITAR_NOT_GREEDY) != 0) own.greedy = false;
    if (given->top_k < EDITAR_TOP_K_OFF)
        throw option_error("top_k must be EDITAR_TOP_K_OFF, 0 (the bundle's) or more, got " +
                           std::to_string(given->top_k));
    if (given->noise < EDITAR_NOISE_USUAL || given->noise > EDITAR_NOISE_GUMBEL)
        throw option_error("noise must be EDITAR_NOISE_UNIFORM or EDITAR_NOISE_GUMBEL, got " +
                           std::to_string(given->noise));
    if (given->noise != EDITAR_NOISE_USUAL) own.gumbel = given->noise == EDITAR_NOISE_GUMBEL;
    check(own);
    return own;
}

bool Sampling::guided() const {
    if (!cfg_scales.empty()) return *std::max_element(cfg_scales.begin(), cfg_scales.end()) > 1;
    return (shape == EDITAR_CFG_CONSTANT ? cfg_scale : std::max(cfg_scale, cfg_last)) > 1;
}

std::vector<double> Sampling::scales(int count) const {
    std::vector<double> all(count, cfg_scale);
    if (!cfg_scales.empty()) {
        if (static_cast<int>(cfg_scales.size()) != count)
            throw option_error("cfg_scale has " + std::to_string(cfg_scales.size()) + " values, but a picture has " +
                               std::to_string(count) + " tokens");
        all = cfg_scales;
    } else if (shape != EDITAR_CFG_CONSTANT) {
        const double step = count > 1 ? 1.0 / (count - 1) : 0.0;
        for (int n = 0; n < count; ++n) {
            double progress = n == count - 1 && count > 1 ? 1.0 : n * step;
            if (shape == EDITAR_CFG_COSINE) progress = (1 - std::cos(PI * progress)) / 2;
            all[n] = cfg_scale + (cfg_last - cfg_scale) * progress;
        }
    }
    for (int n = 0; n < count; ++n) {
        const bool inside = cfg_stop == -1 || (n >= cfg_start && n < cfg_stop);
        all[n] = inside ? std::max(all[n], 1.0) : 1.0;
    }
    return all;
}

std::vector<std::pair<std::string, std::string>> Sampling::settings(int count) const {
    (void)count;
    auto listed = [](const std::vector<double>& values) {
        std::string text;
        for (double value : values) {
            const std::string g = python_g(value);
            text += (text.empty() ? "" : ",") + (std::strtod(g.c_str(), nullptr) == value ? g : python_repr(value));
        }
        return text;
    };
    std::string scale = python_repr(cfg_scale);
    if (!cfg_scales.empty())
        scale = "values:" + listed(cfg_scales);
    else if (shape != EDITAR_CFG_CONSTANT)
        scale = (shape == EDITAR_CFG_LINEAR ? "linear:" : "cosine:") + listed({cfg_scale, cfg_last});
    std::string interval = "[" + std::to_string(cfg_start) + ", " + std::to_string(cfg_stop) + "]";
    if (interval_is_number) interval = std::to_string(cfg_stop == -1 ? -1 : cfg_stop - 2);
    return {{"cfg_scale", scale},
            {"cfg_interval", interval},
            {"temperature", python_repr(temperature)},
            {"top_k", std::to_string(top_k)},
            {"top_p", python_repr(top_p)},
            {"seed", std::to_string(seed)},
            {"greedy", greedy ? "True" : "False"},
            {"noise", gumbel ? "gumbel" : "uniform"}};
}

const float* Sampler::guide(const float* cond, const float* uncond, int size, float scale) {
    guided_.resize(size);
    for (int n = 0; n < size; ++n) guided_[n] = uncond[n] + scale * (cond[n] - uncond[n]);
    return guided_.data();
}

namespace {

// The first of the largest logits. Throws where they are not finite.
int largest_of(const float* logits, int size) {
    int best = 0;
    bool nan = std::isnan(logits[0]);
    for (int n = 1; n < size; ++n) {
        nan = nan || std::isnan(logits[n]);
        if (logits[n] > logits[best]) best = n;
    }
    if (nan || !std::isfinite(logits[best])) throw NotFinite();
    return best;
}

}  // namespace

int32_t Sampler::sample(const float* logits, int size, const Sampling& sampling, uint64_t seed, int position) {
    const int best = largest_of(logits, size);
    if (sampling.greedy) return best;
    const float peak = logits[best];
    keep_largest(logits, size, sampling.top_k);
    if (!sampling.gumbel || sampling.top_p < 1) weigh(logits, peak, sampling);
    if (sampling.gumbel) return with_gumbel(logits, peak, sampling.temperature, seed, position);
    return with_uniform(exact::uniform(seed, 0, position));
}

void Sampler::choose(const float* logits, int size, const Sampling& sampling) {
    const float peak = logits[largest_of(logits, size)];
    keep_largest(logits, size, sampling.top_k);
    weigh(logits, peak, sampling);
}

// Top-k: the tokens of the k largest logits, and those equal to the last of them.
void Sampler::keep_largest(const float* logits, int size, int64_t top_k) {
    kept_.clear();
    if (top_k > 0 && top_k < size) {
        values_.assign(logits, logits + size);
        const auto last = values_.begin() + static_cast<std::ptrdiff_t>(top_k) - 1;
        std::nth_element(values_.begin(), last, values_.end(), std::greater<float>());
        for (int n = 0; n < size; ++n)
            if (logits[n] >= *last) kept_.push_back(n);
    } else {
        for (int n = 0; n < size; ++n) kept_.push_back(n);
    }
}

// The weights of the tokens that are kept. Top-p: drop a token if the more likely ones already weigh more than top_p of
// all.
void Sampler::weigh(const float* logits, float peak, const Sampling& sampling) {
    weights_.clear();
    for (int32_t token : kept_)
        weights_.push_back(
            exact::exp((static_cast<double>(logits[token]) - static_cast<double>(peak)) / sampling.temperature));
    if (!(sampling.top_p < 1)) return;
    order_.resize(kept_.size());
    for (size_t n = 0; n < order_.size(); ++n) order_[n] = static_cast<int32_t>(n);
    std::stable_sort(order_.begin(), order_.end(), [&](int32_t a, int32_t b) { return weights_[a] > weights_[b]; });
    double total = 0;
    for (int32_t place : order_) total += weights_[place];
    const double most = sampling.top_p * total;
    double before = 0;
    size_t stay = 0;
    while (stay < order_.size() && before <= most) before += weights_[order_[stay++]];
    order_.resize(stay);
    std::sort(order_.begin(), order_.end());
    for (size_t n = 0; n < stay; ++n) {
        kept_[n] = kept_[order_[n]];
        weights_[n] = weights_[order_[n]];
    }
    kept_.resize(stay);
    weights_.resize(stay);
}

// The first token at which the running sum of the weights exceeds `number` times their total.
int32_t Sampler::with_uniform(double number) const {
    double total = 0;
    for (double weight : weights_) total += weight;
    const double target = number * total;
    double sum = 0;
    for (size_t n = 0; n < kept_.size(); ++n) {
        sum += weights_[n];
        if (sum > target) return kept_[n];
    }
    return kept_.back();
}

// The token with the largest sum of its logit over the temperature and its noise; of equal sums the first.
int32_t Sampler::with_gumbel(const float* logits, float peak, double temperature, uint64_t seed, int position) const {
    int32_t best = kept_[0];
    double most = 0;
    uint64_t block = 0;  // the one that `words` is
    exact::Words words{};
    for (size_t n = 0; n < kept_.size(); ++n) {
        const auto token = static_cast<uint64_t>(kept_[n]);
        if (token / 4 + 1 != block) words = exact::philox(seed, block = token / 4 + 1, uint64_t{1} << 32, position);
        const double sum = (static_cast<double>(logits[token]) - static_cast<double>(peak)) / temperature +
                           exact::gumbel(words.word[token % 4]);
        if (n == 0 || sum > most) {
            best = kept_[n];
            most = sum;
        }
    }
    return best;
}

}  // namespace editar
