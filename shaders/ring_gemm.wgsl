// Matrix products modulo 2^l: result[b] = a[b] right[b], ring elements of one word (l <= 32) or two (low word first).
//
// A workgroup of 16 x 16 invocations makes a tile of 16 ROWS x 64 elements of the result, each invocation ROWS x 4 of them in
// registers; operands pass through workgroup memory 16 of the inner dimension at a time. Neighbouring invocations have
// neighbouring columns, so that all global accesses are contiguous and the reads of `right` free of bank conflicts.
//
// Two words: a b mod 2^64 = low(a) low(b) + 2^32 (low(a) high(b) + high(a) low(b)); the first product is accumulated in 64
// bits, the others in 32.
//
// Constant: ROWS, 1 or 4. Flags: WIDE: two words; SMALL: the right operand is packed signed 16-bit integers.
//
// CPU twin: `CpuBackend::ring_gemm`.

struct Params {
    // Of this launch; `inner` is a part of the inner dimension where a launch cannot see all of it.
    batch: u32,
    rows: u32,
    inner: u32,
    cols: u32,
    // Elements from one row of a to the next.
    a_stride: u32,
    // First element of a launch's operands: in words, or in 16-bit halves for SMALL.
    a_start: u32,
    right_start: u32,
    result_start: u32,
    // Which bits of the result's words belong to the ring.
    mask_low: u32,
    mask_high: u32,
    // 1: add to what `result` holds.
    accumulate: u32,
    grid_x: u32,
}

#include "lib/params.wgsl"
#include "lib/grid.wgsl"
#include "lib/product.wgsl"

@group(0) @binding(1) var<storage, read> a: array<u32>;
@group(0) @binding(2) var<storage, read> right: array<u32>;
@group(0) @binding(3) var<storage, read_write> result: array<u32>;

const DEPTH: u32 = 16u;
const COLS: u32 = 4u;
const TILE_ROWS: u32 = 16u * ROWS;
const TILE_COLS: u32 = 16u * COLS;
const CELLS: u32 = ROWS * COLS;

// [row][k] and [k][column], low words.
var<workgroup> tile_a: array<u32, TILE_ROWS * DEPTH>;
var<workgroup> tile_b: array<u32, DEPTH * TILE_COLS>;
#ifdef WIDE
var<workgroup> tile_a_high: array<u32, TILE_ROWS * DEPTH>;
#ifndef SMALL
var<workgroup> tile_b_high: array<u32, DEPTH * TILE_COLS>;
#endif
#endif

fn load_a(slot: u32, element: u32, inside: bool) {
#ifdef WIDE
    var low = 0u;
    var high = 0u;
    if (inside) {
        low = a[params.a_start + 2u * element];
        high = a[params.a_start + 2u * element + 1u];
    }
    tile_a[slot] = low;
    tile_a_high[slot] = high;
#else
    var low = 0u;
    if (inside) {
        low = a[params.a_start + element];
    }
    tile_a[slot] = low;
#endif
}

fn load_b(slot: u32, element: u32, inside: bool) {
    var low = 0u;
#ifdef SMALL
    if (inside) {
        let half = params.right_start + element;
        // Sign extension from the half's top bit.
        low = bitcast<u32>(bitcast<i32>(right[half >> 1u] << (16u - 16u * (half & 1u))) >> 16u);
    }
    tile_b[slot] = low;
#else
#ifdef WIDE
    var high = 0u;
    if (inside) {
        low = right[params.right_start + 2u * element];
        high = right[params.right_start + 2u * element + 1u];
    }
    tile_b[slot] = low;
    tile_b_high[slot] = high;
#else
    if (inside) {
        low = right[params.right_start + element];
    }
    tile_b[slot] = low;
#endif
#endif
}

@compute @workgroup_size(256)
fn ring_gemm(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let row_tiles = (params.rows + TILE_ROWS - 1u) / TILE_ROWS;
    let col_tiles = (params.cols + TILE_COLS - 1u) / TILE_COLS;
    let tile = workgroup_index(workgroup);
    let batch = tile / (row_tiles * col_tiles);
    if (batch >= params.batch) {
        return;
    }
    let first_row = (tile / col_tiles) % row_tiles * TILE_ROWS;
    let first_col = tile % col_tiles * TILE_COLS;
    let x = local & 15u;
    let y = local >> 4u;

#ifdef WIDE
    var low: array<Acc, CELLS>;
    var high: array<u32, CELLS>;
    for (var cell = 0u; cell < CELLS; cell++) {
        low[cell] = acc_from(0u);
        high[cell] = 0u;
    }
#else
    var low: array<u32, CELLS>;
    for (var cell = 0u; cell < CELLS; cell++) {
        low[cell] = 0u;
    }
#endif
    for (var k0 = 0u; k0 < params.inner; k0 += DEPTH) {
        for (var r = 0u; r < ROWS; r++) {
            let row = first_row + 16u * r + y;
            let element = (batch * params.rows + row) * params.a_stride + k0 + x;
            load_a((16u * r + y) * DEPTH + x, element, row < params.rows && k0 + x < params.inner);
        }
        for (var c = 0u; c < COLS; c++) {
            let k = 4u * c + (local >> 6u);
            let col = first_col + (local & 63u);
            let element = (batch * params.inner + k0 + k) * params.cols + col;
            load_b(k * TILE_COLS + (local & 63u), element, col < params.cols && k0 + k < params.inner);
        }
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k++) {
            for (var r = 0u; r < ROWS; r++) {
                let at = (16u * r + y) * DEPTH + k;
                let left = tile_a[at];
#ifdef WIDE
                let left_high = tile_a_high[at];
#endif
                for (var c = 0u; c < COLS; c++) {
                    let cell = COLS * r + c;
                    let b = tile_b[k * TILE_COLS + 16u * c + x];
#ifdef WIDE
                    low[cell] = acc_add_product(low[cell], left, b);
#ifdef SMALL
                    // The high word of a negative integer is all ones.
                    high[cell] += left_high * b - select(0u, left, (b >> 31u) != 0u);
#else
                    high[cell] += left_high * b + left * tile_b_high[k * TILE_COLS + 16u * c + x];
#endif
#else
                    low[cell] += left * b;
#endif
                }
            }
        }
        workgroupBarrier();
    }
    for (var r = 0u; r < ROWS; r++) {
        for (var c = 0u; c < COLS; c++) {
            let row = first_row + 16u * r + y;
            let col = first_col + 16u * c + x;
            if (row < params.rows && col < params.cols) {
                let element = (batch * params.rows + row) * params.cols + col;
#ifdef WIDE
                let words = acc_words(low[COLS * r + c]);
                let out = params.result_start + 2u * element;
                var sum = vec2<u32>(words.x, words.y + high[COLS * r + c]);
                if (params.accumulate != 0u) {
                    let held = vec2<u32>(result[out], result[out + 1u]);
                    let sum_low = sum.x + held.x;
                    sum = vec2<u32>(sum_low, sum.y + held.y + select(0u, 1u, sum_low < held.x));
                }
                result[out] = sum.x & params.mask_low;
                result[out + 1u] = sum.y & params.mask_high;
#else
                let out = params.result_start + element;
                var sum = low[COLS * r + c];
                if (params.accumulate != 0u) {
                    sum += result[out];
                }
                result[out] = sum & params.mask_low;
#endif
            }
        }
    }
}
