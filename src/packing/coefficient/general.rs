//! Coefficient packing as one of the packings.

use std::sync::Arc;

use zeroize::Zeroizing;

use super::{
    ClientMatrix, CoefficientPacking, DeviceInput, EncryptedMatrix, InputLayout, MatmulSpec, Operand, Product, split,
};
use crate::{
    arith::sample::SecureRng,
    engine::schedule::{TaskGraph, TaskId},
    he::{GaloisKeys, HeClient, HeError, HeServer, ParameterSet, Response, ResponsePlan, Result, SeededCiphertexts},
    packing::{
        Counts, Loaded, LoadedInput, Packing, Pending, PendingProduct, Prepared, PreparedWeights, check_weights,
        foreign,
    },
};

impl Packing for CoefficientPacking {
    fn name(&self) -> &'static str {
        "coefficient"
    }

    fn counts(&self) -> Counts {
        self.counts
    }

    fn spec(&self) -> &MatmulSpec {
        &self.spec
    }

    fn response_plan(&self) -> &ResponsePlan {
        &self.response
    }

    fn rotation_elements(&self) -> Vec<usize> {
        let n = self.inputs.first().map_or(0, |input| input.n);
        // Those of `h` outputs are `N h / block + 1` and below.
        let (largest, block) =
            (self.merged.iter().map(|p| p.outputs).max().unwrap_or(1), self.output.block >> self.split);
        let elements = GaloisKeys::elements_for_block(n, block);
        let turns = split::elements(n, self.output.block, self.split);
        elements.into_iter().filter(|g| (g - 1) * block <= n * largest).chain(turns.into_iter().skip(1)).collect()
    }

    fn input_ciphertexts(&self, index: usize) -> usize {
        self.inputs.get(index).map_or(0, InputLayout::ciphertexts)
    }

    fn input_bytes(&self, params: &ParameterSet, index: usize) -> Option<usize> {
        self.inputs.get(index)?.byte_len(params)
    }

    fn kept_coefficients(&self) -> usize {
        self.outputs()
    }

    fn encrypt_input(
        &self,
        client: &HeClient,
        index: usize,
        x: &[u64],
        rng: &mut SecureRng,
    ) -> Result<SeededCiphertexts> {
        Ok(client.encrypt_matrix(self.spec.t, self.input(index)?, x, rng)?.into_ciphertexts())
    }

    fn read_input(&self, params: &ParameterSet, index: usize, bytes: &[u8]) -> Result<SeededCiphertexts> {
        let params = &params.at_level(self.limbs())?;
        SeededCiphertexts::from_bytes(params, self.input_ciphertexts(index), bytes)
    }

    fn load_input(&self, server: &HeServer, index: usize, input: Arc<SeededCiphertexts>) -> Result<LoadedInput> {
        let matrix = EncryptedMatrix::new(*self.input(index)?, Arc::unwrap_or_clone(input));
        Ok(LoadedInput(Loaded::Coefficient(DeviceInput::upload(self, server, &matrix)?)))
    }

    fn prepare_weights(&self, server: &HeServer, weights: &[&[i64]]) -> Result<PreparedWeights> {
        check_weights(&self.spec, weights)?;
        let operand = |weights: &&[i64]| -> Result<Operand<'static>> {
            let small = weights.iter().map(|&w| i16::try_from(w).ok()).collect::<Option<Vec<i16>>>();
            match small {
                Some(small) if self.expands_on_device() => Operand::small(server, &small),
                _ => Ok(Operand::Secret(Arc::new(Zeroizing::new(weights.to_vec())))),
            }
        };
        Ok(PreparedWeights(Prepared::Coefficient(weights.iter().map(operand).collect::<Result<_>>()?)))
    }

    fn add<'a>(
        &self,
        graph: &mut TaskGraph<'a, HeError>,
        name: &str,
        server: &HeServer,
        inputs: &[LoadedInput],
        weights: &PreparedWeights,
        rng: &mut SecureRng,
    ) -> Result<PendingProduct> {
        let Prepared::Coefficient(weights) = &weights.0 else { return Err(foreign("weights")) };
        let input = |input: &LoadedInput| match &input.0 {
            Loaded::Coefficient(input) => Ok(input.clone()),
            _ => Err(foreign("an input")),
        };
        let inputs = inputs.iter().map(input).collect::<Result<Vec<_>>>()?;
        if inputs.len() != weights.len() {
            return Err(HeError::shape("multiply", format!("{} inputs for {} operands", inputs.len(), weights.len())));
        }
        let operands = inputs.into_iter().zip(weights.iter().cloned()).collect();
        Ok(PendingProduct(Box::new(Product::add(graph, name, self, server, operands, rng)?)))
    }

    fn decrypt_output(&self, client: &HeClient, response: &Response) -> Result<Vec<u64>> {
        client.decrypt_matrix(self, response)
    }
}

impl CoefficientPacking {
    fn input(&self, index: usize) -> Result<&InputLayout> {
        self.inputs.get(index).ok_or_else(|| HeError::shape("packing", format!("there is no input number {index}")))
    }
}

impl Pending for Product {
    fn tasks(&self) -> Vec<TaskId> {
        Self::tasks(self)
    }

    fn collect(&self) -> Result<(Response, Vec<u64>)> {
        Self::collect(self)
    }
}
