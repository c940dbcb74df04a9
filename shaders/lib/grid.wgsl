// Grids of more workgroups than one dimension allows are folded into rows of `params.grid_x`; the last row may overhang,
// so every kernel compares its index with the number of items.

// Index of this workgroup in the unfolded grid.
fn workgroup_index(workgroup: vec3<u32>) -> u32 {
    return workgroup.y * params.grid_x + workgroup.x;
}

// Index of this invocation in the unfolded grid of workgroups of 256.
fn item_index(workgroup: vec3<u32>, local: u32) -> u32 {
    return workgroup_index(workgroup) * 256u + local;
}
