// Which limb a row of a polynomial is modulo. Operations on all limbs of the ring, or on its first ones, have `skip` 0; key
// switches at lower levels run on the first limbs and on the special primes, and skip those between.

fn limb_of_row(row: u32) -> u32 {
    return row + select(0u, params.skip, row >= params.data);
}
