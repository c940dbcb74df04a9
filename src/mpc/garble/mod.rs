//! Garbled circuits: circuits, half-gates and the gadgets of the non-linear layers.
