// Product with a matrix of small integers, as modular_gemm.wgsl, by dot products of four bytes (`dot4U8Packed`, which many
// adapters have in hardware): 2 dot products of bytes a byte of x for four terms, instead of four wide products.
//
// With u = w + 2^15 in two bytes and x in four, sum_i u x = sum_s 256^s (sum of the byte products with weight s), five 32-bit
// sums; then w x = u x - 2^15 x. Four inputs make a dot product: their bytes are transposed in registers, once for OUTPUTS
// outputs. At most 32768 inputs a launch, so that no sum overflows: 32768 * 2 * 255^2 < 2^32.
//
// Constant: OUTPUTS, a multiple of 4.
//
// CPU twin: `CpuBackend::modular_gemm`.

#include "lib/gemm_params.wgsl"

// Groups of four inputs that are in workgroup memory at a time.
const DEPTH: u32 = 8u;

// [group][output / 4] of low and of high bytes of u.
var<workgroup> low: array<vec4<u32>, DEPTH * OUTPUTS / 4u>;
var<workgroup> high: array<vec4<u32>, DEPTH * OUTPUTS / 4u>;

fn dot4(a: vec4<u32>, b: u32) -> vec4<u32> {
    return vec4<u32>(dot4U8Packed(a.x, b), dot4U8Packed(a.y, b), dot4U8Packed(a.z, b), dot4U8Packed(a.w, b));
}

// sum + value 2^shift modulo 2^64, 0 < shift < 32.
fn add_shifted(sum: vec2<u32>, value: u32, shift: u32) -> vec2<u32> {
    let low_part = value << shift;
    let sum_low = sum.x + low_part;
    return vec2<u32>(sum_low, sum.y + (value >> (32u - shift)) + select(0u, 1u, sum_low < low_part));
}

@compute @workgroup_size(256)
fn gemm_dot(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let index = workgroup_index(workgroup);
    let first_output = index % params.tiles * OUTPUTS;
    let word = index / params.tiles * 256u + local;
    if (index / params.tiles * 256u >= params.words) {
        return;
    }
    let at = min(word, params.words - 1u);

    // Sums of byte products by their weight, and of the bytes of x.
    var s0: array<vec4<u32>, OUTPUTS / 4u>;
    var s1: array<vec4<u32>, OUTPUTS / 4u>;
    var s2: array<vec4<u32>, OUTPUTS / 4u>;
    var s3: array<vec4<u32>, OUTPUTS / 4u>;
    var s4: array<vec4<u32>, OUTPUTS / 4u>;
    for (var quad = 0u; quad < OUTPUTS / 4u; quad++) {
        s0[quad] = vec4<u32>(0u);
        s1[quad] = vec4<u32>(0u);
        s2[quad] = vec4<u32>(0u);
        s3[quad] = vec4<u32>(0u);
        s4[quad] = vec4<u32>(0u);
    }
    var bytes = vec4<u32>(0u);
    for (var i0 = 0u; i0 < params.inputs; i0 += 4u * DEPTH) {
        for (var slot = local; slot < DEPTH * OUTPUTS; slot += 256u) {
            let group = slot % DEPTH;
            let output = slot / DEPTH;
            let input = i0 + 4u * group;
            // Weights of inputs beyond the last are zero, which u = 2^15 stands for.
            let u = vec4<u32>(
                bitcast<u32>(weight(first_output + output, input) + 32768),
                bitcast<u32>(weight(first_output + output, input + 1u) + 32768),
                bitcast<u32>(weight(first_output + output, input + 2u) + 32768),
                bitcast<u32>(weight(first_output + output, input + 3u) + 32768),
            );
            let i = group * (OUTPUTS / 4u) + (output >> 2u);
            let l = u & vec4<u32>(255u);
            let h = u >> vec4<u32>(8u);
            low[i][output & 3u] = l.x | (l.y << 8u) | (l.z << 16u) | (l.w << 24u);
            high[i][output & 3u] = h.x | (h.y << 8u) | (h.z << 16u) | (h.w << 24u);
        }
        workgroupBarrier();
        for (var group = 0u; group < DEPTH; group++) {
            let input = i0 + 4u * group;
            let last = params.inputs - 1u;
            let x0 = x[min(input, last) * params.words + at];
            let x1 = x[min(input + 1u, last) * params.words + at];
            let x2 = x[min(input + 2u, last) * params.words + at];
            let x3 = x[min(input + 3u, last) * params.words + at];
            // Bytes 0 and 2, then 1 and 3, of two inputs each; then a byte of all four.
            let even01 = (x0 & 0xff00ffu) | ((x1 & 0xff00ffu) << 8u);
            let even23 = (x2 & 0xff00ffu) | ((x3 & 0xff00ffu) << 8u);
            let odd01 = ((x0 >> 8u) & 0xff00ffu) | (x1 & 0xff00ff00u);
            let odd23 = ((x2 >> 8u) & 0xff00ffu) | (x3 & 0xff00ff00u);
            let b0 = (even01 & 0xffffu) | (even23 << 16u);
            let b1 = (odd01 & 0xffffu) | (odd23 << 16u);
            let b2 = (even01 >> 16u) | (even23 & 0xffff0000u);
            let b3 = (odd01 >> 16u) | (odd23 & 0xffff0000u);
            bytes += dot4(vec4<u32>(b0, b1, b2, b3), 0x01010101u);
            for (var quad = 0u; quad < OUTPUTS / 4u; quad++) {
                let l = low[group * (OUTPUTS / 4u) + quad];
                let h = high[group * (OUTPUTS / 4u) + quad];
                s0[quad] += dot4(l, b0);
                s1[quad] += dot4(l, b1) + dot4(h, b0);
                s2[quad] += dot4(l, b2) + dot4(h, b1);
                s3[quad] += dot4(l, b3) + dot4(h, b2);
                s4[quad] += dot4(h, b3);
            }
        }
        workgroupBarrier();
    }
    if (word >= params.words) {
        return;
    }
    let m = limbs[(word >> params.log_n) % params.limbs];
    // 2^15 times the sum of x, to subtract.
    var excess = add_shifted(vec2<u32>(0u, 0u), bytes.x, 15u);
    excess = add_shifted(excess, bytes.y, 23u);
    excess = add_shifted(excess, bytes.z, 31u);
    excess = vec2<u32>(excess.x, excess.y + (bytes.w << 7u));
    for (var o = 0u; o < OUTPUTS; o++) {
        if (first_output + o < params.outputs) {
            var sum = vec2<u32>(s0[o / 4u][o % 4u], s4[o / 4u][o % 4u]);
            sum = add_shifted(sum, s1[o / 4u][o % 4u], 8u);
            sum = add_shifted(sum, s2[o / 4u][o % 4u], 16u);
            sum = add_shifted(sum, s3[o / 4u][o % 4u], 24u);
            sum = vec2<u32>(sum.x - excess.x, sum.y - excess.y - select(0u, 1u, sum.x < excess.x));
            store(first_output + o, word, reduce_signed(sum, m), m);
        }
    }
}
