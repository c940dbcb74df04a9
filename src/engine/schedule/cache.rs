//! Cost models on disk, one file for each key.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use super::{CostKey, CostModel};

/// Longest file that is read.
const LIMIT: u64 = 1 << 16;

/// A directory of cost models.
#[derive(Clone, Debug)]
pub struct CostCache {
    dir: PathBuf,
}

/// Where a cost model comes from.
#[derive(Debug)]
pub enum CacheOutcome {
    /// An earlier run measured it.
    Kept,
    /// This run did, and kept it.
    Measured,
    /// This run did and could not keep it, which costs the next one some time.
    NotKept(io::Error),
}

impl CostCache {
    /// A cache in `dir`, which is made when the first model is kept.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf() }
    }

    /// The model for `key`: the one kept, or what `measure` gives if there is none, if it is another key's, damaged or
    /// implausible, or if `again` asks for it.
    ///
    /// # Errors
    /// Those of `measure`.
    pub fn model<E>(
        &self,
        key: &CostKey,
        again: bool,
        measure: impl FnOnce() -> Result<CostModel, E>,
    ) -> Result<(CostModel, CacheOutcome), E> {
        if let Some(model) = (!again).then(|| self.get(key)).flatten() {
            return Ok((model, CacheOutcome::Kept));
        }
        let model = measure()?;
        let outcome = self.put(&model).map_or_else(CacheOutcome::NotKept, |()| CacheOutcome::Measured);
        Ok((model, outcome))
    }

    fn get(&self, key: &CostKey) -> Option<CostModel> {
        let mut text = String::new();
        File::open(self.path(key)).ok()?.take(LIMIT).read_to_string(&mut text).ok()?;
        let model: CostModel = serde_json::from_str(&text).ok()?;
        (model.key == *key && model.is_plausible()).then_some(model)
    }

    /// Writes beside the file and renames: a reader sees the old or the new one, whole.
    fn put(&self, model: &CostModel) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        let path = self.path(&model.key);
        let beside = path.with_extension(format!("{}.new", std::process::id()));
        let written = (|| {
            let mut file = File::create(&beside)?;
            file.write_all(&serde_json::to_vec_pretty(model)?)?;
            file.sync_all()?;
            fs::rename(&beside, &path)
        })();
        if written.is_err() {
            // What could not be written is of no use; that it cannot be removed either changes nothing.
            let _ = fs::remove_file(&beside);
        }
        written
    }

    /// A name that differs for different keys but for accidents, which the key in the file then shows (FNV-1a).
    fn path(&self, key: &CostKey) -> PathBuf {
        let text = format!("{key:?}");
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ b as u64).wrapping_mul(0x100_0000_01b3));
        self.dir.join(format!("costs-{hash:016x}.json"))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::{super::cost::tests::model, *};

    #[test]
    fn models_are_kept_and_measured_again_when_they_must_be() {
        let dir = tempfile::tempdir().unwrap();
        let cache = CostCache::new(&dir.path().join("new"));
        let (first, mut second) = (model(), model());
        second.ntt = 2.0;
        let ask = |key: &CostKey, again: bool, gives: &CostModel| {
            let (model, outcome) = cache.model(key, again, || Ok::<_, Infallible>(gives.clone())).unwrap();
            (model.ntt, matches!(outcome, CacheOutcome::Kept))
        };
        assert_eq!(ask(&first.key, false, &first), (1.0, false));
        assert_eq!(ask(&first.key, false, &second), (1.0, true));
        assert_eq!(ask(&first.key, true, &second), (2.0, false), "asked for");
        assert_eq!(ask(&first.key, false, &first), (2.0, true));

        let other = CostKey { threads: 3, ..first.key.clone() };
        assert_eq!(ask(&other, false, &CostModel { key: other.clone(), ..first.clone() }), (1.0, false));

        let path = cache.path(&first.key);
        let whole = fs::read_to_string(&path).unwrap();
        let foreign = serde_json::to_string(&CostModel { key: other, ..first.clone() }).unwrap();
        for bad in ["", "{", &whole[..whole.len() - 9], &whole.replace("2.0", "-2.0"), &foreign] {
            fs::write(&path, bad).unwrap();
            assert_eq!(ask(&first.key, false, &first), (1.0, false), "{bad}");
        }
        let names = fs::read_dir(&cache.dir).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
        assert!(names.into_iter().all(|n| n.ends_with(".json")), "nothing is left behind");
    }

    #[test]
    fn a_directory_that_cannot_be_written_costs_time_only() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let cache = CostCache::new(file.path());
        let (_, outcome) = cache.model(&model().key, false, || Ok::<_, Infallible>(model())).unwrap();
        assert!(matches!(outcome, CacheOutcome::NotKept(_)));
    }
}
