//! BFV on the engine: parameters, keys, encryption, evaluation, noise accounting, wire form.
