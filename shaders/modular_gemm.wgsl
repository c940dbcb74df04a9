// Product with a matrix of small integers: result[o] = sum_i weights[o][i] x[i], items of `words` residues.
//
// A workgroup has COLUMNS x 256 words of OUTPUTS items of the result; weights pass through workgroup memory 32 inputs at a
// time, and an x that was loaded serves all OUTPUTS. Neighbouring workgroups have the same words and other outputs, so that
// x comes from the cache. Sums are exact integers, reduced once:
//   u64      a 64-bit sum of products of 45 bits;
//   split16  three 32-bit sums, of the products with 10 bits of x each, joined to 64 bits after 32 terms of 26 bits.
//
// Constants: OUTPUTS, a multiple of 4; COLUMNS.
//
// CPU twin: `CpuBackend::modular_gemm`.

#include "lib/gemm_params.wgsl"

const DEPTH: u32 = 32u;
const CELLS: u32 = OUTPUTS * COLUMNS;

// [input][output / 4]
var<workgroup> tile: array<vec4<i32>, DEPTH * OUTPUTS / 4u>;

@compute @workgroup_size(256)
fn modular_gemm(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let index = workgroup_index(workgroup);
    let first_output = index % params.tiles * OUTPUTS;
    let first_word = index / params.tiles * (256u * COLUMNS) + local;
    if (index / params.tiles * (256u * COLUMNS) >= params.words) {
        return;
    }

    // Words beyond the item repeat its last one and are not stored.
    var at: array<u32, COLUMNS>;
    for (var c = 0u; c < COLUMNS; c++) {
        at[c] = min(first_word + 256u * c, params.words - 1u);
    }
#ifdef FORM_U64
    var sums: array<i64, CELLS>;
    for (var cell = 0u; cell < CELLS; cell++) {
        sums[cell] = i64(0);
    }
#else
    var sums: array<vec2<u32>, CELLS>;
    for (var cell = 0u; cell < CELLS; cell++) {
        sums[cell] = vec2<u32>(0u, 0u);
    }
#endif
    for (var i0 = 0u; i0 < params.inputs; i0 += DEPTH) {
        for (var slot = local; slot < DEPTH * OUTPUTS; slot += 256u) {
            let input = i0 + slot % DEPTH;
            let output = slot / DEPTH;
            let i = (slot % DEPTH) * (OUTPUTS / 4u) + (output >> 2u);
            tile[i][output & 3u] = weight(first_output + output, input);
        }
        workgroupBarrier();
#ifdef FORM_U64
        for (var k = 0u; k < DEPTH; k++) {
            // Weights of inputs beyond the last are zero.
            let row = min(i0 + k, params.inputs - 1u) * params.words;
            for (var c = 0u; c < COLUMNS; c++) {
                let value = i64(bitcast<i32>(x[row + at[c]]));
                for (var quad = 0u; quad < OUTPUTS / 4u; quad++) {
                    let w = tile[k * (OUTPUTS / 4u) + quad];
                    let cell = c * OUTPUTS + 4u * quad;
                    sums[cell] += i64(w.x) * value;
                    sums[cell + 1u] += i64(w.y) * value;
                    sums[cell + 2u] += i64(w.z) * value;
                    sums[cell + 3u] += i64(w.w) * value;
                }
            }
        }
#else
        var s0: array<vec4<i32>, CELLS / 4u>;
        var s1: array<vec4<i32>, CELLS / 4u>;
        var s2: array<vec4<i32>, CELLS / 4u>;
        for (var cell = 0u; cell < CELLS / 4u; cell++) {
            s0[cell] = vec4<i32>(0);
            s1[cell] = vec4<i32>(0);
            s2[cell] = vec4<i32>(0);
        }
        for (var k = 0u; k < DEPTH; k++) {
            let row = min(i0 + k, params.inputs - 1u) * params.words;
            for (var c = 0u; c < COLUMNS; c++) {
                let value = bitcast<i32>(x[row + at[c]]);
                for (var quad = 0u; quad < OUTPUTS / 4u; quad++) {
                    let w = tile[k * (OUTPUTS / 4u) + quad];
                    let cell = c * (OUTPUTS / 4u) + quad;
                    s0[cell] += w * (value & 1023);
                    s1[cell] += w * ((value >> 10u) & 1023);
                    s2[cell] += w * (value >> 20u);
                }
            }
        }
        for (var cell = 0u; cell < CELLS; cell++) {
            var sum = add_signed(sums[cell], s0[cell / 4u][cell % 4u], 0u);
            sum = add_signed(sum, s1[cell / 4u][cell % 4u], 10u);
            sums[cell] = add_signed(sum, s2[cell / 4u][cell % 4u], 20u);
        }
#endif
        workgroupBarrier();
    }
    for (var c = 0u; c < COLUMNS; c++) {
        let word = first_word + 256u * c;
        if (word < params.words) {
            let m = limbs[(word >> params.log_n) % params.limbs];
            for (var o = 0u; o < OUTPUTS; o++) {
                if (first_output + o < params.outputs) {
#ifdef FORM_U64
                    let bits = bitcast<u64>(sums[c * OUTPUTS + o]);
                    let words = vec2<u32>(u32(bits & 0xfffffffflu), u32(bits >> 32u));
#else
                    let words = sums[c * OUTPUTS + o];
#endif
                    store(first_output + o, word, reduce_signed(words, m), m);
                }
            }
        }
    }
}

#ifndef FORM_U64
// sum + value 2^shift modulo 2^64, two's complement, shift < 32.
fn add_signed(sum: vec2<u32>, value: i32, shift: u32) -> vec2<u32> {
    let low = bitcast<u32>(value) << shift;
    // Two shifts, for shift may be 0.
    let high = bitcast<u32>((value >> (31u - shift)) >> 1u);
    let sum_low = sum.x + low;
    return vec2<u32>(sum_low, sum.y + high + select(0u, 1u, sum_low < low));
}
#endif
