// Names, limits, defaults, prompts and the manifest's schema, from Python's tables.
// Written by `python -m tests.cpp.make_facts`; do not edit.
// clang-format off
#pragma once

#include <cstdint>

namespace editar::facts {

inline constexpr const char* VERSION = "0.2.0";
inline constexpr const char* VQ_ENCODER = "vq_encoder";
inline constexpr const char* VQ_DECODER = "vq_decoder";
inline constexpr const char* TEXT_ENCODER = "text_encoder";
inline constexpr const char* PREFIX_GRAPH = "prefix";
inline constexpr const char* DECODER = "decoder";
inline constexpr const char* DECODER_CHUNKS = "decoder_chunks";
inline constexpr const char* SAMPLER = "sampler";
inline constexpr const char* PIXELS = "pixels";
inline constexpr const char* TOKENS = "tokens";
inline constexpr const char* INPUT_IDS = "input_ids";
inline constexpr const char* ATTENTION_MASK = "attention_mask";
inline constexpr const char* TEXT_STATES = "text_states";
inline constexpr const char* TEXT_PREFIX = "text_prefix";
inline constexpr const char* NULL_TEXT_PREFIX = "null_text_prefix";
inline constexpr const char* NULL_PICTURE_PREFIX = "null_picture_prefix";
inline constexpr const char* PREFIX = "prefix";
inline constexpr const char* LOGIT_POSITIONS = "logit_positions";
inline constexpr const char* PAST_LENGTH = "past_length";
inline constexpr const char* POSITIONS = "positions";
inline constexpr const char* TOTAL_LENGTH = "total_length";
inline constexpr const char* LAST_ROW = "last_row";
inline constexpr const char* CHUNK_LENGTHS = "chunk_lengths";
inline constexpr const char* LOGITS = "logits";
inline constexpr const char* NEW_ROWS = "new_rows";
inline constexpr int UNCLEAR = -1;
inline constexpr const char* FP32_NODE = "fp32/";
inline constexpr const char* FP16_NODE = "fp16/";
inline constexpr const char* ROWS_DIM = "rows";
inline constexpr const char* POSITIONS_DIM = "positions";
inline constexpr const char* WANTED_DIM = "logit_positions";
inline constexpr const char* PREFIX_ROWS_DIM = "prefix_rows";
inline constexpr const char* PREFIX_POSITIONS_DIM = "prefix_positions";
inline constexpr const char* CAPACITY_DIM = "capacity";
inline constexpr const char* PAST_KEY = "past_key_";  // and the layer's number
inline constexpr const char* PAST_VALUE = "past_value_";  // and the layer's number
inline constexpr const char* PRESENT_KEY = "present_key_";  // and the layer's number
inline constexpr const char* PRESENT_VALUE = "present_value_";  // and the layer's number
inline constexpr const char* PAST_BEGINNINGS[] = {"past_key_", "past_value_"};

namespace sampler {
inline constexpr const char* NULL_ROWS = "null_rows";
inline constexpr const char* NUMBERS = "numbers";
inline constexpr const char* CFG_SCALE = "cfg_scale";
inline constexpr const char* TEMPERATURE = "temperature";
inline constexpr const char* TOP_K = "top_k";
inline constexpr const char* TOP_P = "top_p";
inline constexpr const char* NOISE = "noise";
inline constexpr const char* DRAWN = "drawn";
}  // namespace sampler

struct Precision {
    const char *name, *stored;
    bool is_quantized;
    double bound;
    int bits, block, head_bits, head_block;  // 0 where not quantized
};
inline constexpr Precision PRECISIONS[] = {
    {"fp32", "float32", false, 0.0002, 0, 0, 0, 0},
    {"fp16", "float16", false, 0.01, 0, 0, 0, 0},
    {"bf16", "bfloat16", false, 0.08, 0, 0, 0, 0},
    {"int8", "float32", true, 0.08, 8, 128, 8, 128},
    {"int4", "float32", true, 0.08, 4, 32, 8, 128},
    {"fp8", "float16", true, 0.01, 8, 0, 0, 0},
};
inline constexpr Precision WEIGHT_ONLY = {"", "float16", true, 0.01, 4, 64, 0, 0};
inline constexpr double INT8_CACHE_BOUND = 0.1;
inline constexpr const char* SAME = "same";
inline constexpr const char* INT8 = "int8";
inline constexpr const char* KV_CACHES[] = {"same", "int8"};
struct Dialect {
    const char* name;
    bool has_fixed_shapes, returns_new_rows, reads_whole_cache, reads_int8_cache, has_sampler;
    bool stores_weight_only;  // quantized weights as WEIGHT_ONLY, not as the precision says
};
inline constexpr Dialect DIALECTS[] = {
    {"ort", false, false, false, true, false, false},
    {"standard", false, false, true, false, false, false},
    {"delta", true, true, false, false, true, true},
    {"native", true, false, true, false, true, true},
};

inline constexpr double CFG_SCALE = 3.0;
inline constexpr int CFG_INTERVAL = -1;
inline constexpr double TEMPERATURE = 1.0;
inline constexpr int TOP_K = 1000;
inline constexpr double TOP_P = 1.0;
inline constexpr int SEED = 0;
inline constexpr bool GREEDY = false;
inline constexpr const char* NOISE = "uniform";
inline constexpr const char* SAMPLING_FIELDS[] = {"cfg_scale", "cfg_interval", "temperature", "top_k", "top_p", "seed", "greedy", "noise"};
inline constexpr const char* SCHEDULES[] = {"linear", "cosine", "values"};
inline constexpr double MAX_SCALE = 1000000.0;
inline constexpr const char* ALLOWED_SCALES = "0 to 1e+06, linear:FIRST,LAST, cosine:FIRST,LAST or values:A,B,\342\200\246 with one value per token";
inline constexpr int MAX_VARIANTS = 64;
inline constexpr int MAX_STATES_BYTES = 67108864;
inline constexpr int MASK_MARGIN = 1;
inline constexpr bool COMPOSITE = true;
inline constexpr double PREVIEW_SHARE = 0.1;

struct TaskPrefix {
    const char *task, *prefix;  // of the prompt
};
inline constexpr TaskPrefix TASK_PREFIXES[] = {
    {"edit", ""},
    {"depth", "Given the depth image, generate an image following the description: "},
    {"canny", "Given the canny edge image, generate an image following the description: "},
    {"segmentation", "Given the segmentation mask, generate an image following the description: "},
};

inline constexpr const char* ACCURACY_LEVEL_KEY = "session.qdq_matmulnbits_accuracy_level";
inline constexpr const char* ACCURACY_LEVEL = "1";
inline constexpr int READS_INT8_MAJOR = 1;
inline constexpr int READS_INT8_MINOR = 27;
inline constexpr int TAKES_CHUNK_LENGTHS_MAJOR = 1;
inline constexpr int TAKES_CHUNK_LENGTHS_MINOR = 32;
inline constexpr int TAKES_DURATION_MAJOR = 1;
inline constexpr int TAKES_DURATION_MINOR = 26;
inline constexpr int SPIN_US = 50;
inline constexpr int GROWTH = 256;
inline constexpr int CHUNK = 256;
inline constexpr int LONG = 64;
inline constexpr int PAYS_FROM = 16777216;
inline constexpr int ROOM = 4;
inline constexpr const char* CACHE_GRAPH = "graph.onnx";

namespace kept_folder {
inline constexpr const char* VARIABLE = "EDITAR_CACHE";
inline constexpr const char* OFF = "off";
inline constexpr const char* NAME = "editar_rt";
inline constexpr const char* SEAL = "seal.json";
inline constexpr const char* LOCK = "lock";
inline constexpr const char* PARTIAL = ".partial-";
inline constexpr int SAMPLED = 64;
inline constexpr int PAGE = 4096;
inline constexpr int ABANDONED_SECONDS = 3600;
}  // namespace kept_folder

inline constexpr const char* MANIFEST_NAME = "bundle.json";
inline constexpr const char* FORMAT = "editar-bundle";
inline constexpr int FORMAT_VERSION = 2;
inline constexpr const char* GRAPH_SUFFIX = ".onnx";
inline constexpr int MAX_MANIFEST_BYTES = 4194304;
inline constexpr int64_t MOST_CACHED = 8589934592;
inline constexpr int MAX_JSON_DEPTH = 32;
inline constexpr int HASH_AT_LOAD_BYTES = 67108864;
inline constexpr const char* DTYPES[] = {"bfloat16", "bool", "float16", "float32", "int32", "int64", "int8", "uint8"};
struct Range {
    uint32_t first, last;
};
inline constexpr Range UNPRINTABLE[] = {
    {0, 31},
    {127, 159},
    {8232, 8238},
    {8294, 8297},
    {55296, 57343},
};
inline constexpr const char* SNAPSHOTS = "snapshots";
inline constexpr const char* BLOBS = "blobs";
inline constexpr const char* SAMPLES_LIST = "samples.json";
inline constexpr const char* SAMPLES_FOLDER = "samples";
inline constexpr const char* DEFAULT_PRECISION = "fp32";
inline constexpr const char* DEFAULT_DIALECT = "ort";
inline constexpr const char* DEFAULT_KV_CACHE = "same";
inline constexpr const char* DEFAULT_PROVIDERS[] = {"cpu", "cuda"};
// Sizes of the model, with the largest that is allowed.
#define EDITAR_MODEL_SIZES(X) \
    X(image_size, 4096) \
    X(downsampling, 256) \
    X(grid, 256) \
    X(picture_tokens, 65536) \
    X(codebook_size, 1048576) \
    X(codebook_dim, 65536) \
    X(vocab_size, 1048576) \
    X(dim, 65536) \
    X(layers, 1024) \
    X(heads, 1024) \
    X(head_dim, 4096) \
    X(text_tokens, 8192) \
    X(text_dim, 16384)

namespace schema {
// What a value of the manifest must be: `decode_json` of editar_rt/bundle/manifest.py.
enum class Kind { integer, number, text, boolean, any, list, map, object, either };
struct Field;
struct Type {
    Kind kind;
    bool optional;        // null too
    const Type* of;       // values of a list or map; the first choice of either
    const Type* other;    // the second choice
    const Field* fields;  // of an object
    int count;
};
struct Field {
    const char* name;
    const Type* type;
    bool required;
};
constexpr Type as_optional(Type t) { return {t.kind, true, t.of, t.other, t.fields, t.count}; }
inline constexpr Type integer = {Kind::integer, false, nullptr, nullptr, nullptr, 0};
inline constexpr Type optional_integer = as_optional(integer);
inline constexpr Type map_of_integer = {Kind::map, false, &integer, nullptr, nullptr, 0};
inline constexpr Field model_info_fields[] = {
    {"image_size", &optional_integer, false},
    {"downsampling", &optional_integer, false},
    {"grid", &optional_integer, false},
    {"picture_tokens", &optional_integer, false},
    {"codebook_size", &optional_integer, false},
    {"codebook_dim", &optional_integer, false},
    {"vocab_size", &optional_integer, false},
    {"dim", &optional_integer, false},
    {"layers", &optional_integer, false},
    {"heads", &optional_integer, false},
    {"head_dim", &optional_integer, false},
    {"text_tokens", &optional_integer, false},
    {"text_dim", &optional_integer, false},
    {"parameters", &map_of_integer, false},
    {"activations", &map_of_integer, false},
    {"step_weight_bytes", &map_of_integer, false},
};
inline constexpr Type model_info = {Kind::object, false, nullptr, nullptr, model_info_fields, 16};
inline constexpr Type text = {Kind::text, false, nullptr, nullptr, nullptr, 0};
inline constexpr Type integer_or_text = {Kind::either, false, &integer, &text, nullptr, 0};
inline constexpr Type list_of_integer_or_text = {Kind::list, false, &integer_or_text, nullptr, nullptr, 0};
inline constexpr Field tensor_info_fields[] = {
    {"name", &text, true},
    {"dtype", &text, true},
    {"shape", &list_of_integer_or_text, true},
};
inline constexpr Type tensor_info = {Kind::object, false, nullptr, nullptr, tensor_info_fields, 3};
inline constexpr Type list_of_tensor_info = {Kind::list, false, &tensor_info, nullptr, nullptr, 0};
inline constexpr Field part_fields[] = {
    {"file", &text, true},
    {"inputs", &list_of_tensor_info, true},
    {"outputs", &list_of_tensor_info, true},
};
inline constexpr Type part = {Kind::object, false, nullptr, nullptr, part_fields, 3};
inline constexpr Type map_of_part = {Kind::map, false, &part, nullptr, nullptr, 0};
inline constexpr Field file_info_fields[] = {
    {"sha256", &text, true},
    {"bytes", &integer, true},
};
inline constexpr Type file_info = {Kind::object, false, nullptr, nullptr, file_info_fields, 2};
inline constexpr Type map_of_file_info = {Kind::map, false, &file_info, nullptr, nullptr, 0};
inline constexpr Type list_of_text = {Kind::list, false, &text, nullptr, nullptr, 0};
inline constexpr Type optional_text = as_optional(text);
inline constexpr Type number = {Kind::number, false, nullptr, nullptr, nullptr, 0};
inline constexpr Type number_or_text = {Kind::either, false, &number, &text, nullptr, 0};
inline constexpr Type integer_or_number_or_text = {Kind::either, false, &integer, &number_or_text, nullptr, 0};
inline constexpr Type map_of_integer_or_number_or_text = {Kind::map, false, &integer_or_number_or_text, nullptr, nullptr, 0};
inline constexpr Type any = {Kind::any, false, nullptr, nullptr, nullptr, 0};
inline constexpr Type map_of_any = {Kind::map, false, &any, nullptr, nullptr, 0};
inline constexpr Type optional_map_of_any = as_optional(map_of_any);
inline constexpr Type map_of_text = {Kind::map, false, &text, nullptr, nullptr, 0};
inline constexpr Field manifest_fields[] = {
    {"model", &model_info, true},
    {"parts", &map_of_part, true},
    {"files", &map_of_file_info, true},
    {"precision", &text, false},
    {"spelling", &text, false},
    {"kv_cache", &text, false},
    {"sampler_top_k", &optional_integer, false},
    {"providers", &list_of_text, false},
    {"tokenizer", &optional_text, false},
    {"samples", &optional_text, false},
    {"sampling", &map_of_integer_or_number_or_text, false},
    {"self_test", &optional_map_of_any, false},
    {"made_by", &map_of_text, false},
    {"format", &text, false},
    {"format_version", &integer, false},
};
inline constexpr Type manifest = {Kind::object, false, nullptr, nullptr, manifest_fields, 15};
// And of `build.json`, beside engines.
inline constexpr Type list_of_integer = {Kind::list, false, &integer, nullptr, nullptr, 0};
inline constexpr Field engine_info_fields[] = {
    {"file", &text, true},
    {"profile", &integer, false},
    {"scratch_bytes", &integer, false},
};
inline constexpr Type engine_info = {Kind::object, false, nullptr, nullptr, engine_info_fields, 3};
inline constexpr Type map_of_engine_info = {Kind::map, false, &engine_info, nullptr, nullptr, 0};
inline constexpr Type map_of_number = {Kind::map, false, &number, nullptr, nullptr, 0};
inline constexpr Type list_of_map_of_any = {Kind::list, false, &map_of_any, nullptr, nullptr, 0};
inline constexpr Type boolean = {Kind::boolean, false, nullptr, nullptr, nullptr, 0};
inline constexpr Field build_info_fields[] = {
    {"bundle", &text, true},
    {"target", &text, true},
    {"tensorrt", &text, true},
    {"cuda", &text, true},
    {"gpu", &text, true},
    {"compute_capability", &text, true},
    {"rows", &list_of_integer, true},
    {"chunks", &list_of_integer, true},
    {"engines", &map_of_engine_info, true},
    {"files", &map_of_file_info, true},
    {"graphs", &map_of_text, true},
    {"flags", &map_of_any, false},
    {"seconds", &map_of_number, false},
    {"parity", &list_of_map_of_any, false},
    {"made_by", &map_of_text, false},
    {"drafts", &list_of_integer, false},
    {"library", &text, false},
    {"capabilities", &list_of_text, false},
    {"tried", &boolean, false},
    {"format", &text, false},
    {"format_version", &integer, false},
};
inline constexpr Type build_info = {Kind::object, false, nullptr, nullptr, build_info_fields, 21};
}  // namespace schema

namespace parts {
inline constexpr const char* CALLED[] = {"rows", "positions", "logit_positions", "prefix_rows", "prefix_positions"};
// Tensors that a part must have: `TENSORS` of editar_rt/bundle/parts.py.
struct Dimension {
    int64_t size;             // 0 for a symbol or a size of the model
    const char* of_model;  // a field of `model`, or ""
};
struct TensorShape {
    const char* name;
    const Dimension* dimensions;
    int rank;
};
struct PartShapes {
    const char* part;
    const TensorShape *inputs, *outputs;
    int input_count, output_count;
};
inline constexpr Dimension vq_encoder_pixels_inputs[] = {
    {0, ""},
    {3, ""},
    {0, "image_size"},
    {0, "image_size"},
};
inline constexpr TensorShape vq_encoder_inputs[] = {{"pixels", vq_encoder_pixels_inputs, 4}};
inline constexpr Dimension vq_encoder_tokens_outputs[] = {
    {0, ""},
    {0, "picture_tokens"},
};
inline constexpr TensorShape vq_encoder_outputs[] = {{"tokens", vq_encoder_tokens_outputs, 2}};
inline constexpr Dimension vq_decoder_tokens_inputs[] = {
    {0, ""},
    {0, "picture_tokens"},
};
inline constexpr TensorShape vq_decoder_inputs[] = {{"tokens", vq_decoder_tokens_inputs, 2}};
inline constexpr Dimension vq_decoder_pixels_outputs[] = {
    {0, ""},
    {3, ""},
    {0, "image_size"},
    {0, "image_size"},
};
inline constexpr TensorShape vq_decoder_outputs[] = {{"pixels", vq_decoder_pixels_outputs, 4}};
inline constexpr Dimension text_encoder_input_ids_inputs[] = {
    {0, ""},
    {0, "text_tokens"},
};
inline constexpr Dimension text_encoder_attention_mask_inputs[] = {
    {0, ""},
    {0, "text_tokens"},
};
inline constexpr TensorShape text_encoder_inputs[] = {{"input_ids", text_encoder_input_ids_inputs, 2}, {"attention_mask", text_encoder_attention_mask_inputs, 2}};
inline constexpr Dimension text_encoder_text_states_outputs[] = {
    {0, ""},
    {0, "text_tokens"},
    {0, "text_dim"},
};
inline constexpr TensorShape text_encoder_outputs[] = {{"text_states", text_encoder_text_states_outputs, 3}};
inline constexpr Dimension prefix_text_states_inputs[] = {
    {0, ""},
    {0, "text_tokens"},
    {0, "text_dim"},
};
inline constexpr TensorShape prefix_inputs[] = {{"text_states", prefix_text_states_inputs, 3}};
inline constexpr Dimension prefix_text_prefix_outputs[] = {
    {0, ""},
    {0, "text_tokens"},
    {0, "dim"},
};
inline constexpr Dimension prefix_null_text_prefix_outputs[] = {
    {1, ""},
    {0, "text_tokens"},
    {0, "dim"},
};
inline constexpr Dimension prefix_null_picture_prefix_outputs[] = {
    {1, ""},
    {0, "picture_tokens"},
    {0, "dim"},
};
inline constexpr TensorShape prefix_outputs[] = {{"text_prefix", prefix_text_prefix_outputs, 3}, {"null_text_prefix", prefix_null_text_prefix_outputs, 3}, {"null_picture_prefix", prefix_null_picture_prefix_outputs, 3}};
inline constexpr Dimension decoder_tokens_inputs[] = {
    {0, ""},
    {0, ""},
};
inline constexpr Dimension decoder_prefix_inputs[] = {
    {0, ""},
    {0, ""},
    {0, "dim"},
};
inline constexpr TensorShape decoder_inputs[] = {{"tokens", decoder_tokens_inputs, 2}, {"prefix", decoder_prefix_inputs, 3}};
inline constexpr Dimension decoder_logits_outputs[] = {
    {0, ""},
    {0, ""},
    {0, "vocab_size"},
};
inline constexpr TensorShape decoder_outputs[] = {{"logits", decoder_logits_outputs, 3}};
inline constexpr Dimension decoder_chunks_tokens_inputs[] = {
    {0, ""},
    {0, ""},
};
inline constexpr Dimension decoder_chunks_prefix_inputs[] = {
    {0, ""},
    {0, ""},
    {0, "dim"},
};
inline constexpr Dimension decoder_chunks_chunk_lengths_inputs[] = {
    {0, ""},
};
inline constexpr TensorShape decoder_chunks_inputs[] = {{"tokens", decoder_chunks_tokens_inputs, 2}, {"prefix", decoder_chunks_prefix_inputs, 3}, {"chunk_lengths", decoder_chunks_chunk_lengths_inputs, 1}};
inline constexpr Dimension decoder_chunks_logits_outputs[] = {
    {0, ""},
    {0, ""},
    {0, "vocab_size"},
};
inline constexpr TensorShape decoder_chunks_outputs[] = {{"logits", decoder_chunks_logits_outputs, 3}};
inline constexpr Dimension sampler_logits_inputs[] = {
    {0, ""},
    {0, ""},
    {0, "vocab_size"},
};
inline constexpr Dimension sampler_noise_inputs[] = {
    {0, ""},
    {0, ""},
    {0, "vocab_size"},
};
inline constexpr TensorShape sampler_inputs[] = {{"logits", sampler_logits_inputs, 3}, {"noise", sampler_noise_inputs, 3}};
inline constexpr Dimension sampler_drawn_outputs[] = {
    {0, ""},
    {0, ""},
};
inline constexpr TensorShape sampler_outputs[] = {{"drawn", sampler_drawn_outputs, 2}};
inline constexpr PartShapes TENSORS[] = {
    {"vq_encoder", vq_encoder_inputs, vq_encoder_outputs, 1, 1},
    {"vq_decoder", vq_decoder_inputs, vq_decoder_outputs, 1, 1},
    {"text_encoder", text_encoder_inputs, text_encoder_outputs, 2, 1},
    {"prefix", prefix_inputs, prefix_outputs, 1, 3},
    {"decoder", decoder_inputs, decoder_outputs, 2, 1},
    {"decoder_chunks", decoder_chunks_inputs, decoder_chunks_outputs, 3, 1},
    {"sampler", sampler_inputs, sampler_outputs, 2, 1},
};
}  // namespace parts

namespace graph_file {
inline constexpr const char* PREPACKED = "prepacked_";
inline constexpr int MAX_NAME = 4096;
inline constexpr int MAX_DEPTH = 64;
inline constexpr int MAX_RANK = 64;
inline constexpr int MODEL = 0;
inline constexpr int TRAINING = 1;
inline constexpr int FUNCTION = 2;
inline constexpr int GRAPH = 3;
inline constexpr int NODE = 4;
inline constexpr int ATTRIBUTE = 5;
inline constexpr int SPARSE = 6;
inline constexpr int TENSOR = 7;
inline constexpr int INITIALIZER = 5;
inline constexpr int INPUT = 11;
inline constexpr int OUTPUT = 12;
inline constexpr int DIMS = 1;
inline constexpr int DATA_TYPE = 2;
inline constexpr int NAME = 8;
inline constexpr int EXTERNAL_DATA = 13;
inline constexpr int VARINT = 0;
inline constexpr int FIXED64 = 1;
inline constexpr int BYTES = 2;
inline constexpr int FIXED32 = 5;
inline constexpr int TAG_BYTES = 5;
inline constexpr int VARINT_BYTES = 10;
inline constexpr int MAX_FIELDS = 1048576;
struct Held {
    int message, field, holds;
};
inline constexpr Held HOLDS[] = {
    {0, 7, 3},
    {0, 20, 1},
    {0, 25, 2},
    {1, 1, 3},
    {1, 2, 3},
    {2, 7, 4},
    {2, 11, 5},
    {3, 1, 4},
    {3, 5, 7},
    {3, 15, 6},
    {4, 5, 5},
    {5, 5, 7},
    {5, 6, 3},
    {5, 10, 7},
    {5, 11, 3},
    {5, 22, 6},
    {5, 23, 6},
    {6, 1, 7},
    {6, 2, 7},
};
struct Dtype {
    int number;
    const char* name;
};
inline constexpr Dtype DTYPES[] = {
    {1, "float32"},
    {2, "uint8"},
    {3, "int8"},
    {6, "int32"},
    {7, "int64"},
    {9, "bool"},
    {10, "float16"},
    {16, "bfloat16"},
};
struct Bits {
    int number, bits;
};
inline constexpr Bits BITS[] = {
    {1, 32},
    {2, 8},
    {3, 8},
    {4, 16},
    {5, 16},
    {6, 32},
    {7, 64},
    {9, 8},
    {10, 16},
    {11, 64},
    {12, 32},
    {13, 64},
    {14, 64},
    {15, 128},
    {16, 16},
    {17, 8},
    {18, 8},
    {19, 8},
    {20, 8},
    {21, 4},
    {22, 4},
    {23, 4},
    {24, 8},
};
}  // namespace graph_file

namespace pictures {
inline constexpr int MAX_PIXELS = 64000000;
inline constexpr int MAX_SIDE = 65535;
inline constexpr int MAX_BYTES = 1073741824;
inline constexpr int LONG = 8;
inline constexpr int LANCZOS_SUPPORT = 3;
inline constexpr int THRESHOLD = 128;
inline constexpr int ORIENTATION = 274;
inline constexpr const char* TEXT_PREFIX = "editar:";
}  // namespace pictures

namespace self_test {
inline constexpr double BY_NOISE = -1.0;
inline constexpr const char* PROMPT = "make the ball red";
inline constexpr int CHUNK = 32;
inline constexpr int TEXT_POSITIONS = 8;
inline constexpr int STEPS = 8;
inline constexpr const char* GREEDY = "greedy_tokens";
inline constexpr const char* LOGITS_AFTER = "logits_after";
inline constexpr int SAMPLES = 16;
inline constexpr double TIES = 0.01;
struct Sampling {
    double cfg_scale, temperature, top_p;
    int top_k;
    bool greedy, gumbel;
};
inline constexpr Sampling SAMPLINGS[] = {
    {3.0, 1.0, 1.0, 1000, true, false},
    {1.0, 1.0, 1.0, 1000, true, false},
    {3.0, 1.0, 1.0, 1000, false, false},
    {1.0, 0.7, 1.0, 50, false, false},
    {5.0, 1.5, 0.9, 1000, false, false},
    {1.0, 1.0, 1.0, 0, false, false},
    {3.0, 1.0, 1.0, 1000, false, true},
    {1.0, 0.7, 1.0, 50, false, true},
};
}  // namespace self_test

namespace engines {
inline constexpr double ROW_COST = 0.125;
inline constexpr double SPARE_ROWS = 0.3333333333333333;
inline constexpr int ALIGNMENT = 256;
inline constexpr const char* BUILD_NAME = "build.json";
inline constexpr const char* FORMAT = "editar-engines";
inline constexpr int FORMAT_VERSION = 1;
inline constexpr int MAX_BYTES = 4194304;
inline constexpr const char* TENSORRT = "tensorrt";
inline constexpr const char* RTX = "rtx";
inline constexpr const char* TOO_OLD = "7.5";
inline constexpr const char* TENSORRT_TITLE = "TensorRT";
inline constexpr const char* RTX_TITLE = "TensorRT for RTX";
inline constexpr const char* TRIAL_FORMAT = "editar-trial";
inline constexpr int TRIAL_MAX_BYTES = 1048576;
inline constexpr const char* KERNELS_FILE = "kernels";
inline constexpr int KERNELS_MAX_BYTES = 1073741824;
}  // namespace engines

}  // namespace editar::facts
