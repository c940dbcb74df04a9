//! The shader preprocessor: `#include "path"`, `#ifdef NAME`, `#ifndef NAME`, `#else`, `#endif`, and constants.
//!
//! Directives stand at the start of a line. A file is included once, where it is first asked for. Constants become
//! `const NAME: u32 = ..` lines at the top, in the order given; flags and constants both count as defined for `#ifdef`.
//! Sources come from a table of `(path, text)`, so that a binary carries its shaders.

use thiserror::Error;

/// What is wrong with a shader source.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PreprocessError {
    /// An `#include` names no known file.
    #[error("{file}:{line}: no shader source named {include:?}")]
    UnknownInclude {
        /// File with the directive.
        file: String,
        /// Line, from 1.
        line: usize,
        /// What it asks for.
        include: String,
    },
    /// `#else` or `#endif` without its `#ifdef`, or an `#ifdef` that does not end in its file.
    #[error("{file}:{line}: unbalanced {directive}")]
    Unbalanced {
        /// File with the directive.
        file: String,
        /// Line, from 1.
        line: usize,
        /// The directive.
        directive: &'static str,
    },
    /// A directive that does not exist, or lacks its argument.
    #[error("{file}:{line}: cannot read the directive {text:?}")]
    BadDirective {
        /// File with the directive.
        file: String,
        /// Line, from 1.
        line: usize,
        /// The line itself.
        text: String,
    },
}

/// Expands `root` with the given flags and constants.
pub fn preprocess(
    sources: &[(&str, &str)],
    root: &str,
    flags: &[&str],
    constants: &[(&str, u32)],
) -> Result<String, PreprocessError> {
    expand(sources, root, flags, constants).map(|expanded| expanded.text)
}

/// An expanded source.
pub(super) struct Expanded {
    /// The text.
    pub text: String,
    /// File and line, from 1, of every line of the text.
    lines: Vec<(String, usize)>,
}

impl Expanded {
    /// File and line that `line` of the text, from 1, comes from.
    pub fn origin(&self, line: usize) -> Option<(&str, usize)> {
        self.lines.get(line.checked_sub(1)?).map(|(file, line)| (file.as_str(), *line))
    }
}

/// As [`preprocess`], with the origin of every line.
pub(super) fn expand(
    sources: &[(&str, &str)],
    root: &str,
    flags: &[&str],
    constants: &[(&str, u32)],
) -> Result<Expanded, PreprocessError> {
    let out = Expanded { text: String::new(), lines: Vec::new() };
    let mut expansion = Expansion { sources, flags, constants, included: Vec::new(), out };
    for (name, value) in constants {
        expansion.push(&format!("const {name}: u32 = {value}u;"), "constants", 1);
    }
    expansion.include(root, None)?;
    Ok(expansion.out)
}

struct Expansion<'a> {
    sources: &'a [(&'a str, &'a str)],
    flags: &'a [&'a str],
    constants: &'a [(&'a str, u32)],
    included: Vec<&'a str>,
    out: Expanded,
}

/// One open `#ifdef`.
struct Condition {
    line: usize,
    /// Whether the text around it is kept.
    outer: bool,
    /// Whether the current branch is kept, if `outer` is.
    branch: bool,
    has_else: bool,
}

impl Expansion<'_> {
    fn push(&mut self, line: &str, file: &str, number: usize) {
        self.out.text.push_str(line);
        self.out.text.push('\n');
        self.out.lines.push((file.to_owned(), number));
    }

    fn include(&mut self, path: &str, from: Option<(&str, usize)>) -> Result<(), PreprocessError> {
        let Some(&(path, text)) = self.sources.iter().find(|(name, _)| *name == path) else {
            let (file, line) = from.unwrap_or((path, 0));
            return Err(PreprocessError::UnknownInclude { file: file.into(), line, include: path.into() });
        };
        if self.included.contains(&path) {
            return Ok(());
        }
        self.included.push(path);
        let mut open: Vec<Condition> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let number = number + 1;
            let keep = open.last().is_none_or(|c| c.outer && c.branch);
            let Some(directive) = line.strip_prefix('#') else {
                if keep {
                    self.push(line, path, number);
                }
                continue;
            };
            let bad = || PreprocessError::BadDirective { file: path.into(), line: number, text: line.into() };
            let unbalanced = |directive| PreprocessError::Unbalanced { file: path.into(), line: number, directive };
            let (word, argument) = directive.split_once(' ').unwrap_or((directive, ""));
            let argument = argument.trim();
            match (word, argument.is_empty()) {
                ("include", false) => {
                    let name = argument.strip_prefix('"').and_then(|a| a.strip_suffix('"')).ok_or_else(bad)?;
                    if keep {
                        self.include(name, Some((path, number)))?;
                    }
                }
                ("ifdef" | "ifndef", false) => {
                    let defined =
                        self.flags.contains(&argument) || self.constants.iter().any(|(name, _)| *name == argument);
                    let branch = defined == (word == "ifdef");
                    open.push(Condition { line: number, outer: keep, branch, has_else: false });
                }
                ("else", true) => match open.last_mut() {
                    Some(c) if !c.has_else => {
                        c.branch = !c.branch;
                        c.has_else = true;
                    }
                    _ => return Err(unbalanced("#else")),
                },
                ("endif", true) => {
                    open.pop().ok_or_else(|| unbalanced("#endif"))?;
                }
                _ => return Err(bad()),
            }
        }
        match open.pop() {
            Some(c) => Err(PreprocessError::Unbalanced { file: path.into(), line: c.line, directive: "#ifdef" }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str, flags: &[&str]) -> Result<String, PreprocessError> {
        preprocess(&[("a", text), ("b", "in b\n")], "a", flags, &[("SIZE", 4)])
    }

    #[test]
    fn branches_follow_flags_and_constants() {
        let text =
            "#ifdef A\na\n#ifdef SIZE\nsized\n#else\nbare\n#endif\n#else\nnot a\n#endif\n#ifndef A\nno\n#endif\nend";
        assert_eq!(one(text, &["A"]).unwrap(), "const SIZE: u32 = 4u;\na\nsized\nend\n");
        assert_eq!(one(text, &[]).unwrap(), "const SIZE: u32 = 4u;\nnot a\nno\nend\n");
    }

    #[test]
    fn includes_once_and_only_in_kept_text() {
        assert_eq!(one("#include \"b\"\nx\n#include \"b\"", &[]).unwrap(), "const SIZE: u32 = 4u;\nin b\nx\n");
        assert_eq!(one("#ifdef A\n#include \"b\"\n#endif", &[]).unwrap(), "const SIZE: u32 = 4u;\n");
    }

    #[test]
    fn lines_know_where_they_come_from() {
        let text = "a\n#ifdef NO\nx\n#endif\n#include \"b\"\nlast";
        let expanded = expand(&[("a", text), ("b", "in b\n")], "a", &[], &[("SIZE", 4)]).unwrap();
        let found: Vec<_> = (1..=4).map(|line| expanded.origin(line).unwrap()).collect();
        assert_eq!(found, [("constants", 1), ("a", 1), ("b", 1), ("a", 6)]);
        assert!(expanded.origin(0).is_none() && expanded.origin(5).is_none());
    }

    #[test]
    fn says_what_is_wrong_and_where() {
        let at = |e: PreprocessError| e.to_string();
        assert_eq!(at(one("\n#include \"c\"", &[]).unwrap_err()), "a:2: no shader source named \"c\"");
        assert_eq!(at(one("#endif", &[]).unwrap_err()), "a:1: unbalanced #endif");
        assert_eq!(at(one("x\n#ifdef A\n", &[]).unwrap_err()), "a:2: unbalanced #ifdef");
        assert_eq!(at(one("#ifdef A\n#else\n#else\n#endif", &[]).unwrap_err()), "a:3: unbalanced #else");
        assert_eq!(at(one("#define A", &[]).unwrap_err()), "a:1: cannot read the directive \"#define A\"");
        assert_eq!(at(one("#ifdef", &[]).unwrap_err()), "a:1: cannot read the directive \"#ifdef\"");
    }
}
