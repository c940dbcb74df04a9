//! The parameter sets of homomorphic work: the smallest that carries an item, and a party's keys of each.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use super::{ProtocolError, Result};
use crate::he::{COLUMN_4096, MATMUL_8192, MATMUL_16384, ParameterSet, ParameterSpec};

/// A parameter set of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SetId {
    /// `column-4096`: columns of batch-column packing, as far as rings have room.
    Column4096,
    /// `matmul-8192`: almost everything.
    Matmul8192,
    /// `matmul-16384`: rings that the other one has no room for.
    Matmul16384,
}

impl SetId {
    /// From the cheapest to the widest.
    pub const ALL: [Self; 3] = [Self::Column4096, Self::Matmul8192, Self::Matmul16384];

    /// Its numbers.
    pub fn spec(self) -> ParameterSpec {
        match self {
            Self::Column4096 => COLUMN_4096,
            Self::Matmul8192 => MATMUL_8192,
            Self::Matmul16384 => MATMUL_16384,
        }
    }

    /// The set, built once.
    ///
    /// # Errors
    /// Primes or security that are not there.
    pub fn params(self) -> Result<&'static ParameterSet> {
        static SETS: [OnceLock<ParameterSet>; 3] = [const { OnceLock::new() }; 3];
        let slot = &SETS[self as usize];
        if let Some(params) = slot.get() {
            return Ok(params);
        }
        let params = ParameterSet::new(self.spec())?;
        Ok(slot.get_or_init(|| params))
    }
}

/// A party's keys, by parameter set.
pub struct KeySets<K>(BTreeMap<SetId, Arc<K>>);

impl<K> Clone for KeySets<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K> KeySets<K> {
    /// Those of a set.
    ///
    /// # Errors
    /// [`ProtocolError::Missing`] if there are none.
    pub fn get(&self, set: SetId) -> Result<&Arc<K>> {
        let missing = || ProtocolError::Missing { what: format!("HE keys of {}", set.spec().name) };
        self.0.get(&set).ok_or_else(missing)
    }
}

impl<K> FromIterator<(SetId, Arc<K>)> for KeySets<K> {
    fn from_iter<I: IntoIterator<Item = (SetId, Arc<K>)>>(keys: I) -> Self {
        Self(keys.into_iter().collect())
    }
}

/// Keys of [`SetId::Matmul8192`] alone.
impl<K> From<Arc<K>> for KeySets<K> {
    fn from(keys: Arc<K>) -> Self {
        Self::from_iter([(SetId::Matmul8192, keys)])
    }
}
