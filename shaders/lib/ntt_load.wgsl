// Where a transform's first kernel takes its values from: `source_of` a row of the result, once, then `load` word by word.
// Values are in [0, 4p) forward; the inverse transform takes residues.

#ifndef IN_PLACE
#ifdef DIGITS

@group(0) @binding(4) var<storage, read> x: array<u32>;

struct Source {
    // First word of the digit's first limb.
    at: u32,
    // The digit's limbs.
    first: u32,
    count: u32,
    // Index within the digit of the limb that the row is modulo; `count` or more if it is not of the digit.
    own: u32,
    // Where the conversion of this digit to this row's limb begins.
    conversion: u32,
    target_at: u32,
}

#ifdef CONVERT
@group(0) @binding(5) var<storage, read> conversions: array<u32>;
#include "lib/convert.wgsl"
#endif

fn source_of(row: u32) -> Source {
    let digit_row = row / params.limbs;
    let target_row = row % params.limbs;
    let digit = params.first_digit + digit_row % params.digits;
    let first = digit * DIGIT_LIMBS;
    let at = (digit_row / params.digits) * params.source_stride + params.source_first + first;
    var source: Source;
    source.at = at << LOG_N;
    source.first = first;
    source.count = min(DIGIT_LIMBS, params.data - first);
    // Rows of special primes are beyond every data limb, rows before the digit wrap to large values.
    source.own = select(target_row - first, DIGIT_LIMBS, target_row >= params.data);
#ifdef CONVERT
    source.conversion = digit * conversion_words(DIGIT_LIMBS, params.limbs);
    source.target_at = source.conversion + target_words(DIGIT_LIMBS, target_row);
#endif
    return source;
}

fn load(source: Source, word: u32, m: Limb) -> u32 {
#ifdef CONVERT
    if (source.own < source.count) {
        return x[source.at + (source.own << LOG_N) + word];
    }
    if (source.count > 1u) {
        var sum = conversion_start();
        for (var i = 0u; i < source.count; i++) {
            let y = conversion_factor(x[source.at + (i << LOG_N) + word], source.first + i, source.conversion + 2u * i);
            if (DIGIT_LIMBS > ACC_PRODUCTS && i == ACC_PRODUCTS) {
                sum = conversion_reduce(sum, m);
            }
            sum = conversion_add(sum, y, limbs[source.first + i], conversions[source.target_at + 2u + i]);
        }
        return conversion_end(sum, source.target_at, m);
    }
#endif
    return reduce_word_lazy(x[source.at + word], m);
}

#else
#ifdef EXPAND

// A matrix of signed 16-bit integers, two a word: see `Backend::expand_matrix` for the polynomials.
@group(0) @binding(4) var<storage, read> weights: array<u32>;

struct Source {
    // First row and column of the polynomial's part of the matrix.
    row: u32,
    col: u32,
}

fn source_of(row: u32) -> Source {
    let poly = params.first_poly + row / params.limbs;
    let block = params.first_input + poly % params.inputs;
    return Source(block * BLOCK_ROWS, (params.first_output + poly / params.inputs) * params.columns);
}

fn load(source: Source, word: u32, m: Limb) -> u32 {
    // After stages that only repeat the first SPAN coefficients.
    let exponent = word & (SPAN - 1u);
    let column = exponent / BLOCK_ROWS;
    let row = source.row + exponent % BLOCK_ROWS;
    if (column >= params.columns || row >= params.inner || source.col + column >= params.cols) {
        return 0u;
    }
    let half = row * params.cols + source.col + column - params.skipped;
    let weight = bitcast<i32>(weights[half >> 1u] << (16u - 16u * (half & 1u))) >> 16u;
    let magnitude = reduce_word_lazy(bitcast<u32>(abs(weight)), m);
    return select(magnitude, 2u * m.p - magnitude, weight < 0);
}

#else

@group(0) @binding(4) var<storage, read> x: array<u32>;

fn source_of(row: u32) -> u32 {
    return row << LOG_N;
}

fn load(source: u32, word: u32, m: Limb) -> u32 {
    return x[source + word];
}

#endif
#endif
#endif
