// Where a value of f(X^g) stands in f.

// In the NTT domain, where index i holds the value at psi^(2 brv(i) + 1). The product may wrap: 2N divides 2^32.
fn galois_source(i: u32, g: u32, log_n: u32) -> u32 {
    let spread = 32u - log_n;
    let exponent = (2u * (reverseBits(i) >> spread) + 1u) * g;
    return reverseBits((exponent >> 1u) << spread);
}

// In the coefficient domain: X^s with s g = i mod 2N, where s in [N, 2N) stands for -X^(s - N); `g_inverse` is g^-1 mod 2N.
fn galois_coefficient(i: u32, g_inverse: u32, log_n: u32) -> u32 {
    return (i * g_inverse) & ((2u << log_n) - 1u);
}
