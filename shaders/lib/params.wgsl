// The `params` of a launch: `struct Params`, declared by the including file, as immediates (push constants) where the
// adapter has them, else as a small uniform buffer.

#ifdef IMMEDIATES
var<immediate> params: Params;
#else
@group(0) @binding(0) var<uniform> params: Params;
#endif
