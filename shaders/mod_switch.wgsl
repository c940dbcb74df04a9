// Modulus switch in the coefficient domain: drops limbs from `limbs` down to `kept`, the last one first, each with exact
// rounding: x becomes (x - [x]_p) / p, [x]_p centred. One coefficient of one polynomial, all limbs, an invocation.
// With the special primes as the limbs to drop this is the mod-down of a key switch.
//
// Constant: MAX_DROPPED, at least limbs - kept. Flag: ROTATE: the polynomials are parts 0 and 1 of results of a rotation, and
// part 0 gets c0(X^g) added.
//
// CPU twins: `CpuBackend::mod_switch`, `KeySwitch::mod_down`.

struct Params {
    log_n: u32,
    limbs: u32,
    kept: u32,
    // Row r is modulo limb r, `skip` limbs further from row `data` on.
    data: u32,
    skip: u32,
    // Moduli of the ring: row length of `inverses`.
    ring_limbs: u32,
    polys: u32,
    grid_x: u32,
}

#include "lib/params.wgsl"
#include "lib/grid.wgsl"
#include "lib/modular.wgsl"
#include "lib/rows.wgsl"
#include "lib/galois.wgsl"

@group(0) @binding(1) var<storage, read> limbs: array<Limb>;
// [dropped limb][other limb]: (p_dropped^-1 mod p_other, Shoup companion)
@group(0) @binding(2) var<storage, read> inverses: array<vec2<u32>>;
// [polys][limbs][N]
@group(0) @binding(3) var<storage, read> x: array<u32>;
// [polys][kept][N]
@group(0) @binding(4) var<storage, read_write> result: array<u32>;
#ifdef ROTATE
// [inputs][2][kept][N]
@group(0) @binding(5) var<storage, read> ciphertexts: array<u32>;
// Per result its input and the inverse of its Galois element modulo 2N.
@group(0) @binding(6) var<storage, read> rotations: array<vec2<u32>>;
#endif

// (value - [top]) / p_gone mod p_other, `top` the residue modulo the limb that goes.
fn drop_limb(value: u32, top: u32, gone: u32, other: u32) -> u32 {
    let p_gone = limbs[gone].p;
    let m = limbs[other];
    let negative = top > (p_gone >> 1u);
    let magnitude = reduce_2p(reduce_word_lazy(select(top, p_gone - top, negative), m), m.p);
    let difference = select(sub_mod(value, magnitude, m.p), add_mod(value, magnitude, m.p), negative);
    return reduce_2p(mul_shoup(difference, inverses[gone * params.ring_limbs + other], m.p), m.p);
}

@compute @workgroup_size(256)
fn mod_switch(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = item_index(workgroup, local);
    let poly = i >> params.log_n;
    if (poly >= params.polys) {
        return;
    }
    let coefficient = i & ((1u << params.log_n) - 1u);
    let from_poly = ((poly * params.limbs) << params.log_n) + coefficient;
    let to_poly = ((poly * params.kept) << params.log_n) + coefficient;
    // Residues of the limbs that go, each as it stands when its turn comes, the first to go first.
    var tops: array<u32, MAX_DROPPED>;
    let drops = params.limbs - params.kept;
    for (var turn = 0u; turn < drops; turn++) {
        let gone = params.limbs - 1u - turn;
        var value = x[from_poly + (gone << params.log_n)];
        for (var earlier = 0u; earlier < turn; earlier++) {
            value = drop_limb(value, tops[earlier], limb_of_row(params.limbs - 1u - earlier), limb_of_row(gone));
        }
        tops[turn] = value;
    }
#ifdef ROTATE
    let rotation = rotations[poly >> 1u];
    let source = galois_coefficient(coefficient, rotation.y, params.log_n);
    let negative = (source >> params.log_n) != 0u;
    let added = ((rotation.x * 2u * params.kept) << params.log_n) + (source & ((1u << params.log_n) - 1u));
#endif
    for (var limb = 0u; limb < params.kept; limb++) {
        var value = x[from_poly + (limb << params.log_n)];
        for (var turn = 0u; turn < drops; turn++) {
            value = drop_limb(value, tops[turn], limb_of_row(params.limbs - 1u - turn), limb);
        }
#ifdef ROTATE
        if ((poly & 1u) == 0u) {
            let p = limbs[limb].p;
            let c0 = ciphertexts[added + (limb << params.log_n)];
            value = add_mod(value, select(c0, neg_mod(c0, p), negative), p);
        }
#endif
        result[to_poly + (limb << params.log_n)] = value;
    }
}
