// Negacyclic number-theoretic transform of batches of rows [row][N]. Coefficients in natural order; the NTT domain holds
// f(psi^(2 brv(i) + 1)) at i. Cooley-Tukey forward, Gentleman-Sande inverse, psi merged into the twiddles (Longa, Naehrig
// 2016), lazy butterflies with Shoup twiddles (Harvey 2014).
//
// Stage s halves blocks of N >> s coefficients; block b of stage s uses twiddle (1 << s) + b, a "node" of the binary tree of
// twiddles, whose children 2 node and 2 node + 1 serve its halves. An invocation holds 16 values in registers and does up to
// four stages on them at a time. Two kernels share the stages of a large transform:
//   *_block   the last LOG_BLOCK stages, one workgroup a block, exchanging values through workgroup memory;
//   *_stream  STREAM_BITS stages from stage STREAM_STAGE on, without workgroup memory.
// The last two stages of a block are on four quads of neighbours an invocation, quads of neighbouring invocations side by
// side: the largest part of the twiddles, and the values, are read and written by whole cache lines.
//
// Constants: LOG_N; stream: STREAM_STAGE, STREAM_BITS <= 4; block: LOG_BLOCK >= 4, THREADS, QUAD_FIRST: which of the last two
// stages is the first to do (2: none), and PASSES <= 3 passes before these: pass i is the stages Pi_FIRST up to Pi_LAST - 1
// of the four from stage Pi_STAGE on.
// Flags: BLOCK or STREAM; INVERSE; IN_PLACE: `result` is the input too; DIGITS (forward): the digits of a key switch, made
// from the limbs of the input on the way in, of DIGIT_LIMBS limbs each; EXPAND (forward): weight polynomials, made from a
// matrix of small integers on the way in, BLOCK_ROWS rows of it in each. They have SPAN coefficients at most: the first
// stages, which only repeat these, are left out.
//
// CPU twins: `CpuBackend::{ntt_forward, ntt_inverse}`, `engine::cpu::plain_ntt`; with DIGITS, `KeySwitch::decompose_row`;
// with EXPAND, `CpuBackend::expand_matrix`.

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
// [limb][N] of (twiddle, Shoup companion), two a vector. Inverse: entry 0 is 1/N and entry 1 has 1/N multiplied in.
@group(0) @binding(2) var<storage, read> twiddles: array<vec4<u32>>;

fn twiddle(i: u32) -> vec2<u32> {
    let pair = twiddles[i >> 1u];
    return select(pair.xy, pair.zw, (i & 1u) != 0u);
}

#include "lib/ntt_stages.wgsl"
#include "lib/ntt_load.wgsl"

#ifdef BLOCK

const BLOCK_WORDS: u32 = 1u << LOG_BLOCK;
const LOG_THREADS: u32 = LOG_BLOCK - 4u;
// Blocks a row.
const LOG_BLOCKS: u32 = LOG_N - LOG_BLOCK;

#include "lib/ntt_exchange.wgsl"

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

// The last two stages, on quads from `first_quad` of the row on.
fn inverse_quads(v: ptr<function, Values>, table: u32, first_quad: u32, p: u32) {
    var q: u32;
    var w: vec2<u32>;
    var pair: vec4<u32>;
    q = first_quad + 0u * THREADS;
    pair = twiddles[((table + (1u << (LOG_N - 1u))) >> 1u) + q];
    gentleman_sande(v, 0u, 1u, pair.xy, p);
    gentleman_sande(v, 2u, 3u, pair.zw, p);
    w = twiddle(table + (1u << (LOG_N - 2u)) + q);
    gentleman_sande(v, 0u, 2u, w, p);
    gentleman_sande(v, 1u, 3u, w, p);
    q = first_quad + 1u * THREADS;
    pair = twiddles[((table + (1u << (LOG_N - 1u))) >> 1u) + q];
    gentleman_sande(v, 4u, 5u, pair.xy, p);
    gentleman_sande(v, 6u, 7u, pair.zw, p);
    w = twiddle(table + (1u << (LOG_N - 2u)) + q);
    gentleman_sande(v, 4u, 6u, w, p);
    gentleman_sande(v, 5u, 7u, w, p);
    q = first_quad + 2u * THREADS;
    pair = twiddles[((table + (1u << (LOG_N - 1u))) >> 1u) + q];
    gentleman_sande(v, 8u, 9u, pair.xy, p);
    gentleman_sande(v, 10u, 11u, pair.zw, p);
    w = twiddle(table + (1u << (LOG_N - 2u)) + q);
    gentleman_sande(v, 8u, 10u, w, p);
    gentleman_sande(v, 9u, 11u, w, p);
    q = first_quad + 3u * THREADS;
    pair = twiddles[((table + (1u << (LOG_N - 1u))) >> 1u) + q];
    gentleman_sande(v, 12u, 13u, pair.xy, p);
    gentleman_sande(v, 14u, 15u, pair.zw, p);
    w = twiddle(table + (1u << (LOG_N - 2u)) + q);
    gentleman_sande(v, 12u, 14u, w, p);
    gentleman_sande(v, 13u, 15u, w, p);
}

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
    let quad = (offset >> 2u) + t;
    let x0 = load_quad(quad + 0u * THREADS);
    let x1 = load_quad(quad + 1u * THREADS);
    let x2 = load_quad(quad + 2u * THREADS);
    let x3 = load_quad(quad + 3u * THREADS);
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
    inverse_quads(&v, table, (block << (LOG_BLOCK - 2u)) + t, p);
    put_quads(&v, t);
    workgroupBarrier();
    if (PASSES > 2u) {
        take(&v, t, P2_STAGE);
        inverse_stages(&v, table, pass_node(block, t, P2_STAGE), P2_FIRST, P2_LAST, p);
        put(&v, t, P2_STAGE);
        workgroupBarrier();
    }
    if (PASSES > 1u) {
        take(&v, t, P1_STAGE);
        inverse_stages(&v, table, pass_node(block, t, P1_STAGE), P1_FIRST, P1_LAST, p);
        put(&v, t, P1_STAGE);
        workgroupBarrier();
    }
    take(&v, t, 0u);
    inverse_stages(&v, table, pass_node(block, t, 0u), P0_FIRST, P0_LAST, p);
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

// The last two stages, on quads from `first_quad` of the row on.
fn forward_quads(v: ptr<function, Values>, table: u32, first_quad: u32, p: u32) {
    var q: u32;
    var w: vec2<u32>;
    var pair: vec4<u32>;
    q = first_quad + 0u * THREADS;
    if (QUAD_FIRST == 0u) {
        w = twiddle(table + (1u << (LOG_N - 2u)) + q);
        cooley_tukey(v, 0u, 2u, w, p);
        cooley_tukey(v, 1u, 3u, w, p);
    }
    if (QUAD_FIRST <= 1u) {
        pair = twiddles[((table + (1u << (LOG_N - 1u))) >> 1u) + q];
        cooley_tukey(v, 0u, 1u, pair.xy, p);
        cooley_tukey(v, 2u, 3u, pair.zw, p);
    }
    q = first_quad + 1u * THREADS;
    if (QUAD_FIRST == 0u) {
        w = twiddle(table + (1u << (LOG_N - 2u)) + q);
        cooley_tukey(v, 4u, 6u, w, p);
        cooley_tukey(v, 5u, 7u, w, p);
    }
    if (QUAD_FIRST <= 1u) {
        pair = twiddles[((table + (1u << (LOG_N - 1u))) >> 1u) + q];
        cooley_tukey(v, 4u, 5u, pair.xy, p);
        cooley_tukey(v, 6u, 7u, pair.zw, p);
    }
    q = first_quad + 2u * THREADS;
    if (QUAD_FIRST == 0u) {
        w = twiddle(table + (1u << (LOG_N - 2u)) + q);
        cooley_tukey(v, 8u, 10u, w, p);
        cooley_tukey(v, 9u, 11u, w, p);
    }
    if (QUAD_FIRST <= 1u) {
        pair = twiddles[((table + (1u << (LOG_N - 1u))) >> 1u) + q];
        cooley_tukey(v, 8u, 9u, pair.xy, p);
        cooley_tukey(v, 10u, 11u, pair.zw, p);
    }
    q = first_quad + 3u * THREADS;
    if (QUAD_FIRST == 0u) {
        w = twiddle(table + (1u << (LOG_N - 2u)) + q);
        cooley_tukey(v, 12u, 14u, w, p);
        cooley_tukey(v, 13u, 15u, w, p);
    }
    if (QUAD_FIRST <= 1u) {
        pair = twiddles[((table + (1u << (LOG_N - 1u))) >> 1u) + q];
        cooley_tukey(v, 12u, 13u, pair.xy, p);
        cooley_tukey(v, 14u, 15u, pair.zw, p);
    }
}

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
    let word = block << LOG_BLOCK;
    if (PASSES == 0u) {
        v[0] = load(source, word + 4u * (t + 0u * THREADS) + 0u, m);
        v[1] = load(source, word + 4u * (t + 0u * THREADS) + 1u, m);
        v[2] = load(source, word + 4u * (t + 0u * THREADS) + 2u, m);
        v[3] = load(source, word + 4u * (t + 0u * THREADS) + 3u, m);
        v[4] = load(source, word + 4u * (t + 1u * THREADS) + 0u, m);
        v[5] = load(source, word + 4u * (t + 1u * THREADS) + 1u, m);
        v[6] = load(source, word + 4u * (t + 1u * THREADS) + 2u, m);
        v[7] = load(source, word + 4u * (t + 1u * THREADS) + 3u, m);
        v[8] = load(source, word + 4u * (t + 2u * THREADS) + 0u, m);
        v[9] = load(source, word + 4u * (t + 2u * THREADS) + 1u, m);
        v[10] = load(source, word + 4u * (t + 2u * THREADS) + 2u, m);
        v[11] = load(source, word + 4u * (t + 2u * THREADS) + 3u, m);
        v[12] = load(source, word + 4u * (t + 3u * THREADS) + 0u, m);
        v[13] = load(source, word + 4u * (t + 3u * THREADS) + 1u, m);
        v[14] = load(source, word + 4u * (t + 3u * THREADS) + 2u, m);
        v[15] = load(source, word + 4u * (t + 3u * THREADS) + 3u, m);
    } else {
        let from_word = word + first_word(t, P0_STAGE);
        let low = LOG_THREADS - P0_STAGE;
        v[0] = load(source, from_word + (0u << low), m);
        v[1] = load(source, from_word + (1u << low), m);
        v[2] = load(source, from_word + (2u << low), m);
        v[3] = load(source, from_word + (3u << low), m);
        v[4] = load(source, from_word + (4u << low), m);
        v[5] = load(source, from_word + (5u << low), m);
        v[6] = load(source, from_word + (6u << low), m);
        v[7] = load(source, from_word + (7u << low), m);
        v[8] = load(source, from_word + (8u << low), m);
        v[9] = load(source, from_word + (9u << low), m);
        v[10] = load(source, from_word + (10u << low), m);
        v[11] = load(source, from_word + (11u << low), m);
        v[12] = load(source, from_word + (12u << low), m);
        v[13] = load(source, from_word + (13u << low), m);
        v[14] = load(source, from_word + (14u << low), m);
        v[15] = load(source, from_word + (15u << low), m);
        forward_stages(&v, table, pass_node(block, t, P0_STAGE), P0_FIRST, P0_LAST, p);
        put(&v, t, P0_STAGE);
        workgroupBarrier();
        if (PASSES > 1u) {
            take(&v, t, P1_STAGE);
            forward_stages(&v, table, pass_node(block, t, P1_STAGE), P1_FIRST, P1_LAST, p);
            put(&v, t, P1_STAGE);
            workgroupBarrier();
        }
        if (PASSES > 2u) {
            take(&v, t, P2_STAGE);
            forward_stages(&v, table, pass_node(block, t, P2_STAGE), P2_FIRST, P2_LAST, p);
            put(&v, t, P2_STAGE);
            workgroupBarrier();
        }
        take_quads(&v, t);
    }
    forward_quads(&v, table, (block << (LOG_BLOCK - 2u)) + t, p);
    let quad = (offset >> 2u) + t;
    result[quad + 0u * THREADS] =
        vec4<u32>(reduce_4p(v[0], p), reduce_4p(v[1], p), reduce_4p(v[2], p), reduce_4p(v[3], p));
    result[quad + 1u * THREADS] =
        vec4<u32>(reduce_4p(v[4], p), reduce_4p(v[5], p), reduce_4p(v[6], p), reduce_4p(v[7], p));
    result[quad + 2u * THREADS] =
        vec4<u32>(reduce_4p(v[8], p), reduce_4p(v[9], p), reduce_4p(v[10], p), reduce_4p(v[11], p));
    result[quad + 3u * THREADS] =
        vec4<u32>(reduce_4p(v[12], p), reduce_4p(v[13], p), reduce_4p(v[14], p), reduce_4p(v[15], p));
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
