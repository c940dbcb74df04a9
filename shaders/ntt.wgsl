// Negacyclic number-theoretic transform of batches of rows [row][N], row r modulo limb r % limbs. Coefficients in natural
// order; the NTT domain holds f(psi^(2 brv(i) + 1)) at i. Cooley-Tukey forward, Gentleman-Sande inverse, psi merged into the
// twiddles (Longa, Naehrig 2016), lazy butterflies with Shoup twiddles (Harvey 2014).
//
// Stage s halves blocks of N >> s coefficients; block b of stage s uses twiddle (1 << s) + b, a "node" of the binary tree of
// twiddles, whose children 2 node and 2 node + 1 serve its halves. An invocation holds 16 values in registers and does up to
// four stages on them at a time. Two kernels share the stages of a large transform:
//   *_block   the last LOG_BLOCK stages, one workgroup a block, exchanging values through workgroup memory;
//   *_stream  STREAM_BITS stages from stage STREAM_STAGE on, without workgroup memory.
// Constants: LOG_N; LOG_BLOCK >= 4 (block); STREAM_STAGE, STREAM_BITS <= 4 (stream).
// Flags: BLOCK or STREAM; INVERSE; IN_PLACE: `result` is the input too; DIGITS (forward): the digits of a key switch, made
// from the limbs of the input on the way in, of DIGIT_LIMBS limbs each; EXPAND (forward): weight polynomials, made from a
// matrix of small integers on the way in, BLOCK_ROWS rows of it in each.
//
// CPU twins: `CpuBackend::{ntt_forward, ntt_inverse}`, `engine::cpu::plain_ntt`; with DIGITS, `KeySwitch::decompose_row`; with EXPAND,
// `CpuBackend::expand_matrix`.

struct Params {
    // Rows of N words in the result.
    rows: u32,
    // Rows of a polynomial; row r of one is modulo limb r, `skip` limbs further from row `data` on.
    limbs: u32,
    data: u32,
    skip: u32,
#ifdef DIGITS
    // The result is [polys][digits][limbs][N], with digits from `first_digit` on.
    digits: u32,
    first_digit: u32,
    // Polynomial k of the input begins at row source_stride k + source_first of x.
    source_stride: u32,
    source_first: u32,
#endif
#ifdef EXPAND
    // The matrix, [inner][cols], less `skipped` integers at its start.
    inner: u32,
    cols: u32,
    skipped: u32,
    // Columns that share a polynomial.
    columns: u32,
    // The result is [outputs][inputs][limbs][N] from polynomial `first_poly` on, groups of columns from `first_output` and
    // blocks of BLOCK_ROWS rows from `first_input` on.
    first_poly: u32,
    first_output: u32,
    first_input: u32,
    inputs: u32,
#endif
    grid_x: u32,
}

#include "lib/params.wgsl"
#include "lib/grid.wgsl"
#include "lib/modular.wgsl"
#include "lib/rows.wgsl"

@group(0) @binding(1) var<storage, read> limbs: array<Limb>;
// [limb][N] of (twiddle, Shoup companion). Inverse: entry 0 is 1/N and entry 1 has 1/N multiplied in.
@group(0) @binding(2) var<storage, read> twiddles: array<vec2<u32>>;

alias Values = array<u32, 16>;

#ifdef INVERSE

// (a, b) to (a + b, (a - b) w), in and out in [0, 2p).
fn gentleman_sande(v: ptr<function, Values>, i: u32, j: u32, w: vec2<u32>, p: u32) {
    let a = (*v)[i];
    let b = (*v)[j];
    let sum = a + b;
    (*v)[i] = min(sum, sum - 2u * p);
    (*v)[j] = mul_shoup(a + 2u * p - b, w, p);
}

// Stages `last - 1` down to `first` of the four below `node`, on values in [0, 2p).
fn inverse_stages(v: ptr<function, Values>, table: u32, node: u32, first: u32, last: u32, p: u32) {
    if (first <= 3u && 3u < last) {
        let at = table + (node << 3u);
        var w = twiddles[at];
        gentleman_sande(v, 0u, 1u, w, p);
        w = twiddles[at + 1u];
        gentleman_sande(v, 2u, 3u, w, p);
        w = twiddles[at + 2u];
        gentleman_sande(v, 4u, 5u, w, p);
        w = twiddles[at + 3u];
        gentleman_sande(v, 6u, 7u, w, p);
        w = twiddles[at + 4u];
        gentleman_sande(v, 8u, 9u, w, p);
        w = twiddles[at + 5u];
        gentleman_sande(v, 10u, 11u, w, p);
        w = twiddles[at + 6u];
        gentleman_sande(v, 12u, 13u, w, p);
        w = twiddles[at + 7u];
        gentleman_sande(v, 14u, 15u, w, p);
    }
    if (first <= 2u && 2u < last) {
        let at = table + (node << 2u);
        var w = twiddles[at];
        gentleman_sande(v, 0u, 2u, w, p);
        gentleman_sande(v, 1u, 3u, w, p);
        w = twiddles[at + 1u];
        gentleman_sande(v, 4u, 6u, w, p);
        gentleman_sande(v, 5u, 7u, w, p);
        w = twiddles[at + 2u];
        gentleman_sande(v, 8u, 10u, w, p);
        gentleman_sande(v, 9u, 11u, w, p);
        w = twiddles[at + 3u];
        gentleman_sande(v, 12u, 14u, w, p);
        gentleman_sande(v, 13u, 15u, w, p);
    }
    if (first <= 1u && 1u < last) {
        let at = table + (node << 1u);
        var w = twiddles[at];
        gentleman_sande(v, 0u, 4u, w, p);
        gentleman_sande(v, 1u, 5u, w, p);
        gentleman_sande(v, 2u, 6u, w, p);
        gentleman_sande(v, 3u, 7u, w, p);
        w = twiddles[at + 1u];
        gentleman_sande(v, 8u, 12u, w, p);
        gentleman_sande(v, 9u, 13u, w, p);
        gentleman_sande(v, 10u, 14u, w, p);
        gentleman_sande(v, 11u, 15u, w, p);
    }
    if (first <= 0u && 0u < last) {
        let at = table + node;
        let w = twiddles[at];
        gentleman_sande(v, 0u, 8u, w, p);
        gentleman_sande(v, 1u, 9u, w, p);
        gentleman_sande(v, 2u, 10u, w, p);
        gentleman_sande(v, 3u, 11u, w, p);
        gentleman_sande(v, 4u, 12u, w, p);
        gentleman_sande(v, 5u, 13u, w, p);
        gentleman_sande(v, 6u, 14u, w, p);
        gentleman_sande(v, 7u, 15u, w, p);
        if (node == 1u) {
            // The very last stage: 1/N is in w, and in entry 0 for the sums.
            let n_inv = twiddles[table];
            (*v)[0] = mul_shoup((*v)[0], n_inv, p);
            (*v)[1] = mul_shoup((*v)[1], n_inv, p);
            (*v)[2] = mul_shoup((*v)[2], n_inv, p);
            (*v)[3] = mul_shoup((*v)[3], n_inv, p);
            (*v)[4] = mul_shoup((*v)[4], n_inv, p);
            (*v)[5] = mul_shoup((*v)[5], n_inv, p);
            (*v)[6] = mul_shoup((*v)[6], n_inv, p);
            (*v)[7] = mul_shoup((*v)[7], n_inv, p);
        }
    }
}

#else

// (a, b) to (a + b w, a - b w), in and out in [0, 4p).
fn cooley_tukey(v: ptr<function, Values>, i: u32, j: u32, w: vec2<u32>, p: u32) {
    let a = min((*v)[i], (*v)[i] - 2u * p);
    let t = mul_shoup((*v)[j], w, p);
    (*v)[i] = a + t;
    (*v)[j] = a + 2u * p - t;
}

// Stages `first` up to `last - 1` of the four below `node`, on values in [0, 4p).
fn forward_stages(v: ptr<function, Values>, table: u32, node: u32, first: u32, last: u32, p: u32) {
    if (first <= 0u && 0u < last) {
        let at = table + node;
        let w = twiddles[at];
        cooley_tukey(v, 0u, 8u, w, p);
        cooley_tukey(v, 1u, 9u, w, p);
        cooley_tukey(v, 2u, 10u, w, p);
        cooley_tukey(v, 3u, 11u, w, p);
        cooley_tukey(v, 4u, 12u, w, p);
        cooley_tukey(v, 5u, 13u, w, p);
        cooley_tukey(v, 6u, 14u, w, p);
        cooley_tukey(v, 7u, 15u, w, p);
    }
    if (first <= 1u && 1u < last) {
        let at = table + (node << 1u);
        var w = twiddles[at];
        cooley_tukey(v, 0u, 4u, w, p);
        cooley_tukey(v, 1u, 5u, w, p);
        cooley_tukey(v, 2u, 6u, w, p);
        cooley_tukey(v, 3u, 7u, w, p);
        w = twiddles[at + 1u];
        cooley_tukey(v, 8u, 12u, w, p);
        cooley_tukey(v, 9u, 13u, w, p);
        cooley_tukey(v, 10u, 14u, w, p);
        cooley_tukey(v, 11u, 15u, w, p);
    }
    if (first <= 2u && 2u < last) {
        let at = table + (node << 2u);
        var w = twiddles[at];
        cooley_tukey(v, 0u, 2u, w, p);
        cooley_tukey(v, 1u, 3u, w, p);
        w = twiddles[at + 1u];
        cooley_tukey(v, 4u, 6u, w, p);
        cooley_tukey(v, 5u, 7u, w, p);
        w = twiddles[at + 2u];
        cooley_tukey(v, 8u, 10u, w, p);
        cooley_tukey(v, 9u, 11u, w, p);
        w = twiddles[at + 3u];
        cooley_tukey(v, 12u, 14u, w, p);
        cooley_tukey(v, 13u, 15u, w, p);
    }
    if (first <= 3u && 3u < last) {
        let at = table + (node << 3u);
        var w = twiddles[at];
        cooley_tukey(v, 0u, 1u, w, p);
        w = twiddles[at + 1u];
        cooley_tukey(v, 2u, 3u, w, p);
        w = twiddles[at + 2u];
        cooley_tukey(v, 4u, 5u, w, p);
        w = twiddles[at + 3u];
        cooley_tukey(v, 6u, 7u, w, p);
        w = twiddles[at + 4u];
        cooley_tukey(v, 8u, 9u, w, p);
        w = twiddles[at + 5u];
        cooley_tukey(v, 10u, 11u, w, p);
        w = twiddles[at + 6u];
        cooley_tukey(v, 12u, 13u, w, p);
        w = twiddles[at + 7u];
        cooley_tukey(v, 14u, 15u, w, p);
    }
}

#endif

#include "lib/ntt_load.wgsl"

#ifdef BLOCK

const BLOCK_WORDS: u32 = 1u << LOG_BLOCK;
const LOG_THREADS: u32 = LOG_BLOCK - 4u;
// Blocks a row.
const LOG_BLOCKS: u32 = LOG_N - LOG_BLOCK;
// Where the four stages of the last register pass begin. They overlap the pass before unless 4 divides LOG_BLOCK.
const LAST_PASS: u32 = LOG_BLOCK - 4u;
const LAST_PASS_FIRST: u32 = (4u - LOG_BLOCK % 4u) % 4u;
const FULL_PASSES: u32 = LOG_BLOCK / 4u;

var<workgroup> exchange: array<u32, BLOCK_WORDS>;

// Spreads strides of 16 and 256 over 32 banks without padding: a permutation of each 32 words.
fn swizzle(i: u32) -> u32 {
    return i ^ ((i >> 5u) & 15u) ^ ((i >> 4u) & 16u);
}

// In the pass from stage s, invocation t holds the words first_word + (k << (LAST_PASS - s)), k < 16, of the block,
// which belong to block t >> (LAST_PASS - s) of stage s.
fn first_word(t: u32, s: u32) -> u32 {
    let low = LAST_PASS - s;
    return ((t >> low) << (low + 4u)) | (t & ((1u << low) - 1u));
}

fn pass_node(block: u32, t: u32, s: u32) -> u32 {
    return (((1u << LOG_BLOCKS) + block) << s) + (t >> (LAST_PASS - s));
}

// Hands the values from the layout of one pass to that of another. Each invocation writes where it has last read, so one
// barrier is enough.
fn repartition(v: ptr<function, Values>, t: u32, from_stage: u32, to_stage: u32) {
    let from_word = first_word(t, from_stage);
    let from_low = LAST_PASS - from_stage;
    exchange[swizzle(from_word + (0u << from_low))] = (*v)[0];
    exchange[swizzle(from_word + (1u << from_low))] = (*v)[1];
    exchange[swizzle(from_word + (2u << from_low))] = (*v)[2];
    exchange[swizzle(from_word + (3u << from_low))] = (*v)[3];
    exchange[swizzle(from_word + (4u << from_low))] = (*v)[4];
    exchange[swizzle(from_word + (5u << from_low))] = (*v)[5];
    exchange[swizzle(from_word + (6u << from_low))] = (*v)[6];
    exchange[swizzle(from_word + (7u << from_low))] = (*v)[7];
    exchange[swizzle(from_word + (8u << from_low))] = (*v)[8];
    exchange[swizzle(from_word + (9u << from_low))] = (*v)[9];
    exchange[swizzle(from_word + (10u << from_low))] = (*v)[10];
    exchange[swizzle(from_word + (11u << from_low))] = (*v)[11];
    exchange[swizzle(from_word + (12u << from_low))] = (*v)[12];
    exchange[swizzle(from_word + (13u << from_low))] = (*v)[13];
    exchange[swizzle(from_word + (14u << from_low))] = (*v)[14];
    exchange[swizzle(from_word + (15u << from_low))] = (*v)[15];
    workgroupBarrier();
    let to_word = first_word(t, to_stage);
    let to_low = LAST_PASS - to_stage;
    (*v)[0] = exchange[swizzle(to_word + (0u << to_low))];
    (*v)[1] = exchange[swizzle(to_word + (1u << to_low))];
    (*v)[2] = exchange[swizzle(to_word + (2u << to_low))];
    (*v)[3] = exchange[swizzle(to_word + (3u << to_low))];
    (*v)[4] = exchange[swizzle(to_word + (4u << to_low))];
    (*v)[5] = exchange[swizzle(to_word + (5u << to_low))];
    (*v)[6] = exchange[swizzle(to_word + (6u << to_low))];
    (*v)[7] = exchange[swizzle(to_word + (7u << to_low))];
    (*v)[8] = exchange[swizzle(to_word + (8u << to_low))];
    (*v)[9] = exchange[swizzle(to_word + (9u << to_low))];
    (*v)[10] = exchange[swizzle(to_word + (10u << to_low))];
    (*v)[11] = exchange[swizzle(to_word + (11u << to_low))];
    (*v)[12] = exchange[swizzle(to_word + (12u << to_low))];
    (*v)[13] = exchange[swizzle(to_word + (13u << to_low))];
    (*v)[14] = exchange[swizzle(to_word + (14u << to_low))];
    (*v)[15] = exchange[swizzle(to_word + (15u << to_low))];
}

#ifdef INVERSE

#ifdef IN_PLACE
@group(0) @binding(3) var<storage, read_write> result: array<vec4<u32>>;

fn load_quad(i: u32) -> vec4<u32> {
    return result[i];
}

fn store(i: u32, value: u32) {
    result[i >> 2u][i & 3u] = value;
}
#else
@group(0) @binding(3) var<storage, read_write> result: array<u32>;
@group(0) @binding(4) var<storage, read> quads: array<vec4<u32>>;

fn load_quad(i: u32) -> vec4<u32> {
    return quads[i];
}

fn store(i: u32, value: u32) {
    result[i] = value;
}
#endif

@compute @workgroup_size(THREADS)
fn inverse_block(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let index = workgroup_index(workgroup);
    if (index >= params.rows << LOG_BLOCKS) {
        return;
    }
    let block = index & ((1u << LOG_BLOCKS) - 1u);
    let limb = limb_of_row((index >> LOG_BLOCKS) % params.limbs);
    let p = limbs[limb].p;
    let table = limb << LOG_N;
    let offset = index << LOG_BLOCK;

    var v: Values;
    let quad = (offset >> 2u) + 4u * t;
    let x0 = load_quad(quad + 0u);
    let x1 = load_quad(quad + 1u);
    let x2 = load_quad(quad + 2u);
    let x3 = load_quad(quad + 3u);
    v[0] = x0.x;
    v[1] = x0.y;
    v[2] = x0.z;
    v[3] = x0.w;
    v[4] = x1.x;
    v[5] = x1.y;
    v[6] = x1.z;
    v[7] = x1.w;
    v[8] = x2.x;
    v[9] = x2.y;
    v[10] = x2.z;
    v[11] = x2.w;
    v[12] = x3.x;
    v[13] = x3.y;
    v[14] = x3.z;
    v[15] = x3.w;
    inverse_stages(&v, table, pass_node(block, t, LAST_PASS), LAST_PASS_FIRST, 4u, p);
    var at_stage = LAST_PASS;
    for (var pass_end = LOG_BLOCK - (4u - LAST_PASS_FIRST); pass_end >= 4u; pass_end -= 4u) {
        let stage = pass_end - 4u;
        repartition(&v, t, at_stage, stage);
        inverse_stages(&v, table, pass_node(block, t, stage), 0u, 4u, p);
        at_stage = stage;
    }
    // Canonical when the transform ends here, which does no harm when it goes on.
    store(offset + t + (0u << LOG_THREADS), reduce_2p(v[0], p));
    store(offset + t + (1u << LOG_THREADS), reduce_2p(v[1], p));
    store(offset + t + (2u << LOG_THREADS), reduce_2p(v[2], p));
    store(offset + t + (3u << LOG_THREADS), reduce_2p(v[3], p));
    store(offset + t + (4u << LOG_THREADS), reduce_2p(v[4], p));
    store(offset + t + (5u << LOG_THREADS), reduce_2p(v[5], p));
    store(offset + t + (6u << LOG_THREADS), reduce_2p(v[6], p));
    store(offset + t + (7u << LOG_THREADS), reduce_2p(v[7], p));
    store(offset + t + (8u << LOG_THREADS), reduce_2p(v[8], p));
    store(offset + t + (9u << LOG_THREADS), reduce_2p(v[9], p));
    store(offset + t + (10u << LOG_THREADS), reduce_2p(v[10], p));
    store(offset + t + (11u << LOG_THREADS), reduce_2p(v[11], p));
    store(offset + t + (12u << LOG_THREADS), reduce_2p(v[12], p));
    store(offset + t + (13u << LOG_THREADS), reduce_2p(v[13], p));
    store(offset + t + (14u << LOG_THREADS), reduce_2p(v[14], p));
    store(offset + t + (15u << LOG_THREADS), reduce_2p(v[15], p));
}

#else

@group(0) @binding(3) var<storage, read_write> result: array<vec4<u32>>;

#ifdef IN_PLACE
fn source_of(row: u32) -> u32 {
    return row << LOG_N;
}

fn load(source: u32, word: u32, m: Limb) -> u32 {
    let i = source + word;
    return result[i >> 2u][i & 3u];
}
#endif

@compute @workgroup_size(THREADS)
fn forward_block(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let index = workgroup_index(workgroup);
    if (index >= params.rows << LOG_BLOCKS) {
        return;
    }
    let block = index & ((1u << LOG_BLOCKS) - 1u);
    let row = index >> LOG_BLOCKS;
    let limb = limb_of_row(row % params.limbs);
    let m = limbs[limb];
    let p = m.p;
    let table = limb << LOG_N;
    let offset = index << LOG_BLOCK;

    var v: Values;
    let source = source_of(row);
    let word = (block << LOG_BLOCK) + t;
    v[0] = load(source, word + (0u << LOG_THREADS), m);
    v[1] = load(source, word + (1u << LOG_THREADS), m);
    v[2] = load(source, word + (2u << LOG_THREADS), m);
    v[3] = load(source, word + (3u << LOG_THREADS), m);
    v[4] = load(source, word + (4u << LOG_THREADS), m);
    v[5] = load(source, word + (5u << LOG_THREADS), m);
    v[6] = load(source, word + (6u << LOG_THREADS), m);
    v[7] = load(source, word + (7u << LOG_THREADS), m);
    v[8] = load(source, word + (8u << LOG_THREADS), m);
    v[9] = load(source, word + (9u << LOG_THREADS), m);
    v[10] = load(source, word + (10u << LOG_THREADS), m);
    v[11] = load(source, word + (11u << LOG_THREADS), m);
    v[12] = load(source, word + (12u << LOG_THREADS), m);
    v[13] = load(source, word + (13u << LOG_THREADS), m);
    v[14] = load(source, word + (14u << LOG_THREADS), m);
    v[15] = load(source, word + (15u << LOG_THREADS), m);
    forward_stages(&v, table, pass_node(block, t, 0u), 0u, 4u, p);
    for (var pass_index = 1u; pass_index < FULL_PASSES; pass_index++) {
        repartition(&v, t, 4u * pass_index - 4u, 4u * pass_index);
        forward_stages(&v, table, pass_node(block, t, 4u * pass_index), 0u, 4u, p);
    }
    if (LAST_PASS_FIRST != 0u) {
        repartition(&v, t, 4u * FULL_PASSES - 4u, LAST_PASS);
        forward_stages(&v, table, pass_node(block, t, LAST_PASS), LAST_PASS_FIRST, 4u, p);
    }
    let quad = (offset >> 2u) + 4u * t;
    result[quad + 0u] = vec4<u32>(reduce_4p(v[0], p), reduce_4p(v[1], p), reduce_4p(v[2], p), reduce_4p(v[3], p));
    result[quad + 1u] = vec4<u32>(reduce_4p(v[4], p), reduce_4p(v[5], p), reduce_4p(v[6], p), reduce_4p(v[7], p));
    result[quad + 2u] = vec4<u32>(reduce_4p(v[8], p), reduce_4p(v[9], p), reduce_4p(v[10], p), reduce_4p(v[11], p));
    result[quad + 3u] = vec4<u32>(reduce_4p(v[12], p), reduce_4p(v[13], p), reduce_4p(v[14], p), reduce_4p(v[15], p));
}

#endif

#endif

#ifdef STREAM

@group(0) @binding(3) var<storage, read_write> result: array<u32>;

#ifdef IN_PLACE
fn source_of(row: u32) -> u32 {
    return row << LOG_N;
}

fn load(source: u32, word: u32, m: Limb) -> u32 {
    return result[source + word];
}
#endif

fn finish(value: u32, p: u32) -> u32 {
#ifdef INVERSE
    return reduce_2p(value, p);
#else
#ifdef CANONICAL
    return reduce_4p(value, p);
#else
    return value;
#endif
#endif
}

const UNUSED_BITS: u32 = 4u - STREAM_BITS;

// An invocation holds 1 << STREAM_BITS words of a row, in the registers that four stages would leave to their first ones.
@compute @workgroup_size(256)
#ifdef INVERSE
fn inverse_stream(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) local: u32) {
#else
fn forward_stream(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) local: u32) {
#endif
    let index = item_index(workgroup, local);
    let row = index >> (LOG_N - STREAM_BITS);
    if (row >= params.rows) {
        return;
    }
    let column = index & ((1u << (LOG_N - STREAM_BITS)) - 1u);
    let low = LOG_N - STREAM_BITS - STREAM_STAGE;
    let block = column >> low;
    let word = (block << (low + STREAM_BITS)) | (column & ((1u << low) - 1u));
    let node = (1u << STREAM_STAGE) + block;
    let limb = limb_of_row(row % params.limbs);
    let m = limbs[limb];
    let p = m.p;
    let table = limb << LOG_N;
    let offset = (row << LOG_N) + word;

    var v: Values;
    let source = source_of(row);
    v[0] = load(source, word + ((0u >> UNUSED_BITS) << low), m);
    if (STREAM_BITS >= 1u) {
        v[8] = load(source, word + ((8u >> UNUSED_BITS) << low), m);
    }
    if (STREAM_BITS >= 2u) {
        v[4] = load(source, word + ((4u >> UNUSED_BITS) << low), m);
        v[12] = load(source, word + ((12u >> UNUSED_BITS) << low), m);
    }
    if (STREAM_BITS >= 3u) {
        v[2] = load(source, word + ((2u >> UNUSED_BITS) << low), m);
        v[6] = load(source, word + ((6u >> UNUSED_BITS) << low), m);
        v[10] = load(source, word + ((10u >> UNUSED_BITS) << low), m);
        v[14] = load(source, word + ((14u >> UNUSED_BITS) << low), m);
    }
    if (STREAM_BITS >= 4u) {
        v[1] = load(source, word + ((1u >> UNUSED_BITS) << low), m);
        v[3] = load(source, word + ((3u >> UNUSED_BITS) << low), m);
        v[5] = load(source, word + ((5u >> UNUSED_BITS) << low), m);
        v[7] = load(source, word + ((7u >> UNUSED_BITS) << low), m);
        v[9] = load(source, word + ((9u >> UNUSED_BITS) << low), m);
        v[11] = load(source, word + ((11u >> UNUSED_BITS) << low), m);
        v[13] = load(source, word + ((13u >> UNUSED_BITS) << low), m);
        v[15] = load(source, word + ((15u >> UNUSED_BITS) << low), m);
    }
#ifdef INVERSE
    inverse_stages(&v, table, node, 0u, STREAM_BITS, p);
#else
    forward_stages(&v, table, node, 0u, STREAM_BITS, p);
#endif
    result[offset + ((0u >> UNUSED_BITS) << low)] = finish(v[0], p);
    if (STREAM_BITS >= 1u) {
        result[offset + ((8u >> UNUSED_BITS) << low)] = finish(v[8], p);
    }
    if (STREAM_BITS >= 2u) {
        result[offset + ((4u >> UNUSED_BITS) << low)] = finish(v[4], p);
        result[offset + ((12u >> UNUSED_BITS) << low)] = finish(v[12], p);
    }
    if (STREAM_BITS >= 3u) {
        result[offset + ((2u >> UNUSED_BITS) << low)] = finish(v[2], p);
        result[offset + ((6u >> UNUSED_BITS) << low)] = finish(v[6], p);
        result[offset + ((10u >> UNUSED_BITS) << low)] = finish(v[10], p);
        result[offset + ((14u >> UNUSED_BITS) << low)] = finish(v[14], p);
    }
    if (STREAM_BITS >= 4u) {
        result[offset + ((1u >> UNUSED_BITS) << low)] = finish(v[1], p);
        result[offset + ((3u >> UNUSED_BITS) << low)] = finish(v[3], p);
        result[offset + ((5u >> UNUSED_BITS) << low)] = finish(v[5], p);
        result[offset + ((7u >> UNUSED_BITS) << low)] = finish(v[7], p);
        result[offset + ((9u >> UNUSED_BITS) << low)] = finish(v[9], p);
        result[offset + ((11u >> UNUSED_BITS) << low)] = finish(v[11], p);
        result[offset + ((13u >> UNUSED_BITS) << low)] = finish(v[13], p);
        result[offset + ((15u >> UNUSED_BITS) << low)] = finish(v[15], p);
    }
}

#endif
