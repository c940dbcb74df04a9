//! Text to token ids, from the bytes of `tokenizer.json` or of `vocab.txt` and `tokenizer_config.json`.

use std::path::Path;

use serde::Deserialize;
use tokenizers::{
    AddedToken, PostProcessor, Tokenizer as Inner,
    models::wordpiece::WordPiece,
    normalizers::BertNormalizer,
    pre_tokenizers::bert::BertPreTokenizer,
    processors::bert::BertProcessing,
    utils::truncation::{TruncationParams, truncate_encodings},
};

use super::{BUCKETS, ModelError, tensors::read};

/// The files a tokenizer is made of; they travel in the manifest.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct TokenizerFiles {
    /// `tokenizer.json`.
    pub tokenizer: Option<Vec<u8>>,
    /// `vocab.txt`, used where there is no `tokenizer.json`.
    pub vocabulary: Option<Vec<u8>>,
    /// `tokenizer_config.json`, read beside `vocab.txt`.
    pub config: Option<Vec<u8>>,
}

impl TokenizerFiles {
    /// Reads the files of a model folder; only those that are used.
    pub fn read(dir: &Path) -> Result<Self, ModelError> {
        let optional = |name: &str| dir.join(name).is_file().then(|| read(&dir.join(name))).transpose();
        if let Some(tokenizer) = optional("tokenizer.json")? {
            return Ok(Self { tokenizer: Some(tokenizer), ..Self::default() });
        }
        let Some(vocabulary) = optional("vocab.txt")? else {
            return Err(ModelError::Missing { dir: dir.to_path_buf(), file: "tokenizer.json or vocab.txt" });
        };
        Ok(Self { tokenizer: None, vocabulary: Some(vocabulary), config: optional("tokenizer_config.json")? })
    }

    /// Names and bytes of the files that are there.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        [("tokenizer.json", &self.tokenizer), ("vocab.txt", &self.vocabulary), ("tokenizer_config.json", &self.config)]
            .into_iter()
            .filter_map(|(name, bytes)| bytes.as_deref().map(|b| (name, b)))
    }
}

/// A text as the encoder sees it, before padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids, `[CLS]` and `[SEP]` included.
    pub ids: Vec<u32>,
    /// Token types: 0, or 1 for the second text.
    pub types: Vec<u32>,
    /// The tokens as text.
    pub tokens: Vec<String>,
    /// Public length that the tokens are padded to.
    pub bucket: usize,
    /// Whether the text was longer than the limit and was cut.
    pub truncated: bool,
}

impl Encoded {
    /// Number of real tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no token, which an encoder's template never gives.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// Smallest bucket of at least `tokens`, none wider than `positions`.
pub fn bucket(tokens: usize, positions: usize) -> Option<usize> {
    BUCKETS.into_iter().find(|&b| b >= tokens && b <= positions)
}

/// A tokenizer without padding and truncation of its own.
pub struct Tokenizer {
    inner: Inner,
}

impl Tokenizer {
    /// Builds the tokenizer.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] if the files are damaged or lack the special tokens.
    pub fn new(files: &TokenizerFiles) -> Result<Self, ModelError> {
        let inner = match (&files.tokenizer, &files.vocabulary) {
            (Some(json), _) => {
                let mut inner = Inner::from_bytes(json).map_err(|e| error(format!("tokenizer.json: {e}")))?;
                inner.with_padding(None);
                inner.with_truncation(None).map_err(|e| error(e.to_string()))?;
                inner
            }
            (None, Some(vocabulary)) => from_vocabulary(vocabulary, files.config.as_deref())?,
            (None, None) => return Err(error("neither tokenizer.json nor vocab.txt is there".into())),
        };
        Ok(Self { inner })
    }

    /// Tokenizes a text or a pair of texts; a longer one is cut to `max_tokens`, of a pair the longer text first.
    ///
    /// # Errors
    /// [`ModelError::Input`] if the limit leaves no room for the special tokens or has no bucket of at most `positions`.
    pub fn encode(
        &self,
        text: &str,
        pair: Option<&str>,
        max_tokens: usize,
        positions: usize,
    ) -> Result<Encoded, ModelError> {
        let failed = |e: tokenizers::Error| ModelError::Input { reason: e.to_string() };
        let first = self.inner.encode(text, false).map_err(failed)?;
        let second = pair.map(|p| self.inner.encode(p, false)).transpose().map_err(failed)?;
        let special = self.inner.get_post_processor().map_or(0, |p| p.added_tokens(pair.is_some()));
        let largest = BUCKETS.into_iter().filter(|&b| b <= positions).max().unwrap_or(0);
        let limit = max_tokens.min(largest);
        if limit <= special {
            return Err(ModelError::Input {
                reason: format!("a limit of {limit} tokens leaves no room beside {special} special tokens"),
            });
        }
        let truncated = first.len() + second.as_ref().map_or(0, |s| s.len()) + special > limit;
        let parameters = TruncationParams { max_length: limit - special, ..TruncationParams::default() };
        let (first, second) = truncate_encodings(first, second, &parameters).map_err(failed)?;
        let encoding = self.inner.post_process(first, second, true).map_err(failed)?;
        let ids = encoding.get_ids().to_vec();
        let bucket = bucket(ids.len(), positions)
            .filter(|_| !ids.is_empty())
            .ok_or_else(|| ModelError::Input { reason: format!("{} tokens fit no bucket", ids.len()) })?;
        Ok(Encoded {
            types: encoding.get_type_ids().to_vec(),
            tokens: encoding.get_tokens().to_vec(),
            ids,
            bucket,
            truncated,
        })
    }
}

fn error(reason: String) -> ModelError {
    ModelError::Tokenizer { reason }
}

/// BERT's own tokenizer: clean, lower-case, split at spaces and punctuation, longest match first.
fn from_vocabulary(vocabulary: &[u8], config: Option<&[u8]>) -> Result<Inner, ModelError> {
    /// A token is a string, or an object with its `content`.
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Token {
        Plain(String),
        Added { content: String },
    }
    impl Token {
        fn or(token: Option<Self>, default: &str) -> String {
            match token {
                Some(Self::Plain(content) | Self::Added { content }) => content,
                None => default.into(),
            }
        }
    }
    #[derive(Deserialize, Default)]
    struct Config {
        do_lower_case: Option<bool>,
        strip_accents: Option<bool>,
        tokenize_chinese_chars: Option<bool>,
        unk_token: Option<Token>,
        cls_token: Option<Token>,
        sep_token: Option<Token>,
        pad_token: Option<Token>,
        mask_token: Option<Token>,
    }
    let config: Config = match config {
        Some(bytes) => serde_json::from_slice(bytes).map_err(|e| error(format!("tokenizer_config.json: {e}")))?,
        None => Config::default(),
    };
    let ids = WordPiece::read_bytes(vocabulary).map_err(|e| error(format!("vocab.txt: {e}")))?;
    let unknown = Token::or(config.unk_token, "[UNK]");
    let cls = Token::or(config.cls_token, "[CLS]");
    let sep = Token::or(config.sep_token, "[SEP]");
    let id = |token: &str| ids.get(token).copied().ok_or_else(|| error(format!("vocab.txt has no {token}")));
    let (_, cls_id, sep_id) = (id(&unknown)?, id(&cls)?, id(&sep)?);
    let special: Vec<AddedToken> = [
        unknown.clone(),
        cls.clone(),
        sep.clone(),
        Token::or(config.pad_token, "[PAD]"),
        Token::or(config.mask_token, "[MASK]"),
    ]
    .into_iter()
    .filter(|token| ids.contains_key(token))
    .map(|token| AddedToken::from(token, true))
    .collect();
    let model =
        WordPiece::builder().vocab(ids).unk_token(unknown).build().map_err(|e| error(format!("vocab.txt: {e}")))?;
    let lower = config.do_lower_case.unwrap_or(true);
    let chinese = config.tokenize_chinese_chars.unwrap_or(true);
    let mut inner = Inner::new(model);
    inner
        .with_normalizer(Some(BertNormalizer::new(true, chinese, config.strip_accents, lower)))
        .map_err(|e| error(e.to_string()))?;
    inner.with_pre_tokenizer(Some(BertPreTokenizer));
    inner.with_post_processor(Some(BertProcessing::new((sep, sep_id), (cls, cls_id))));
    inner.add_special_tokens(special).map_err(|e| error(e.to_string()))?;
    Ok(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCABULARY: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\nworld\n##s\n!\n";

    fn tokenizer(config: Option<&str>) -> Tokenizer {
        let files = TokenizerFiles {
            vocabulary: Some(VOCABULARY.into()),
            config: config.map(|c| c.as_bytes().to_vec()),
            ..TokenizerFiles::default()
        };
        Tokenizer::new(&files).unwrap()
    }

    #[test]
    fn words_pieces_and_the_template() {
        let t = tokenizer(None);
        let e = t.encode("Hello, WORLDS!", None, 128, 512).unwrap();
        assert_eq!(e.ids, [2, 5, 1, 6, 7, 8, 3]);
        assert_eq!((e.types.clone(), e.bucket, e.truncated), (vec![0; 7], 8, false));
        let e = t.encode("", None, 128, 512).unwrap();
        assert_eq!((e.ids, e.bucket), (vec![2, 3], 8));
        let e = t.encode("hello", Some("world world"), 128, 512).unwrap();
        assert_eq!(e.ids, [2, 5, 3, 6, 6, 3]);
        assert_eq!(e.types, [0, 0, 0, 1, 1, 1]);
        // Special tokens in a text count as such, as in the reference tokenizer.
        assert_eq!(t.encode("hello [SEP] world", None, 128, 512).unwrap().ids, [2, 5, 3, 6, 3]);
    }

    #[test]
    fn case_is_kept_where_the_configuration_says_so() {
        let t = tokenizer(Some(r#"{"do_lower_case": false, "cls_token": {"content": "[CLS]", "lstrip": false}}"#));
        assert_eq!(t.encode("Hello hello", None, 128, 512).unwrap().ids, [2, 1, 5, 3]);
    }

    #[test]
    fn long_texts_are_cut_with_a_notice() {
        let t = tokenizer(None);
        let e = t.encode(&"hello ".repeat(1000), None, 128, 512).unwrap();
        assert_eq!((e.len(), e.bucket, e.truncated, e.ids[127]), (128, 128, true, 3));
        let e = t.encode(&"hello ".repeat(20), Some("world"), 10, 512).unwrap();
        assert_eq!(e.ids, [2, 5, 5, 5, 5, 5, 5, 3, 6, 3]);
        // No bucket is wider than the position table.
        let e = t.encode(&"hello ".repeat(1000), None, 128, 100).unwrap();
        assert_eq!((e.len(), e.bucket), (64, 64));
        assert!(t.encode("hello", None, 2, 512).is_err());
        assert!(t.encode("hello", None, 128, 7).is_err());
    }

    #[test]
    fn damaged_files_are_refused() {
        let json = TokenizerFiles { tokenizer: Some(b"{}".to_vec()), ..TokenizerFiles::default() };
        assert!(matches!(Tokenizer::new(&json), Err(ModelError::Tokenizer { .. })));
        let vocabulary = TokenizerFiles { vocabulary: Some(b"a\nb\n".to_vec()), ..TokenizerFiles::default() };
        assert!(matches!(Tokenizer::new(&vocabulary), Err(ModelError::Tokenizer { .. })));
        let binary = TokenizerFiles { vocabulary: Some(vec![0xff, 0xfe, 0x00]), ..TokenizerFiles::default() };
        assert!(matches!(Tokenizer::new(&binary), Err(ModelError::Tokenizer { .. })));
        assert!(matches!(Tokenizer::new(&TokenizerFiles::default()), Err(ModelError::Tokenizer { .. })));
    }
}
