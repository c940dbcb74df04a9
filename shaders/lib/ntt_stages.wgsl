// Butterflies on the 16 values of an invocation, up to four stages at a time. `twiddle` and `twiddles` are the including file's.

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
        let at = (table + (node << 3u)) >> 1u;
        var w = twiddles[at];
        gentleman_sande(v, 0u, 1u, w.xy, p);
        gentleman_sande(v, 2u, 3u, w.zw, p);
        w = twiddles[at + 1u];
        gentleman_sande(v, 4u, 5u, w.xy, p);
        gentleman_sande(v, 6u, 7u, w.zw, p);
        w = twiddles[at + 2u];
        gentleman_sande(v, 8u, 9u, w.xy, p);
        gentleman_sande(v, 10u, 11u, w.zw, p);
        w = twiddles[at + 3u];
        gentleman_sande(v, 12u, 13u, w.xy, p);
        gentleman_sande(v, 14u, 15u, w.zw, p);
    }
    if (first <= 2u && 2u < last) {
        let at = (table + (node << 2u)) >> 1u;
        var w = twiddles[at];
        gentleman_sande(v, 0u, 2u, w.xy, p);
        gentleman_sande(v, 1u, 3u, w.xy, p);
        gentleman_sande(v, 4u, 6u, w.zw, p);
        gentleman_sande(v, 5u, 7u, w.zw, p);
        w = twiddles[at + 1u];
        gentleman_sande(v, 8u, 10u, w.xy, p);
        gentleman_sande(v, 9u, 11u, w.xy, p);
        gentleman_sande(v, 12u, 14u, w.zw, p);
        gentleman_sande(v, 13u, 15u, w.zw, p);
    }
    if (first <= 1u && 1u < last) {
        let at = (table + (node << 1u)) >> 1u;
        let w = twiddles[at];
        gentleman_sande(v, 0u, 4u, w.xy, p);
        gentleman_sande(v, 1u, 5u, w.xy, p);
        gentleman_sande(v, 2u, 6u, w.xy, p);
        gentleman_sande(v, 3u, 7u, w.xy, p);
        gentleman_sande(v, 8u, 12u, w.zw, p);
        gentleman_sande(v, 9u, 13u, w.zw, p);
        gentleman_sande(v, 10u, 14u, w.zw, p);
        gentleman_sande(v, 11u, 15u, w.zw, p);
    }
    if (first <= 0u && 0u < last) {
        let w = twiddle(table + node);
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
            let n_inv = twiddle(table);
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
        let w = twiddle(table + node);
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
        let at = (table + (node << 1u)) >> 1u;
        let w = twiddles[at];
        cooley_tukey(v, 0u, 4u, w.xy, p);
        cooley_tukey(v, 1u, 5u, w.xy, p);
        cooley_tukey(v, 2u, 6u, w.xy, p);
        cooley_tukey(v, 3u, 7u, w.xy, p);
        cooley_tukey(v, 8u, 12u, w.zw, p);
        cooley_tukey(v, 9u, 13u, w.zw, p);
        cooley_tukey(v, 10u, 14u, w.zw, p);
        cooley_tukey(v, 11u, 15u, w.zw, p);
    }
    if (first <= 2u && 2u < last) {
        let at = (table + (node << 2u)) >> 1u;
        var w = twiddles[at];
        cooley_tukey(v, 0u, 2u, w.xy, p);
        cooley_tukey(v, 1u, 3u, w.xy, p);
        cooley_tukey(v, 4u, 6u, w.zw, p);
        cooley_tukey(v, 5u, 7u, w.zw, p);
        w = twiddles[at + 1u];
        cooley_tukey(v, 8u, 10u, w.xy, p);
        cooley_tukey(v, 9u, 11u, w.xy, p);
        cooley_tukey(v, 12u, 14u, w.zw, p);
        cooley_tukey(v, 13u, 15u, w.zw, p);
    }
    if (first <= 3u && 3u < last) {
        let at = (table + (node << 3u)) >> 1u;
        var w = twiddles[at];
        cooley_tukey(v, 0u, 1u, w.xy, p);
        cooley_tukey(v, 2u, 3u, w.zw, p);
        w = twiddles[at + 1u];
        cooley_tukey(v, 4u, 5u, w.xy, p);
        cooley_tukey(v, 6u, 7u, w.zw, p);
        w = twiddles[at + 2u];
        cooley_tukey(v, 8u, 9u, w.xy, p);
        cooley_tukey(v, 10u, 11u, w.zw, p);
        w = twiddles[at + 3u];
        cooley_tukey(v, 12u, 13u, w.xy, p);
        cooley_tukey(v, 14u, 15u, w.zw, p);
    }
}

#endif
