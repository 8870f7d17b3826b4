//! The files a playbook is read from, and places in them.
//!
//! Responsible for reading text, giving every file a small id, and turning byte
//! offsets into lines and columns. It does not know YAML or SQL.

use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Index of a file in [`Sources`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct SourceId(pub u32);

/// A range of bytes in one source file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Span {
    /// The file.
    pub source: SourceId,
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

/// A value together with where the author wrote it.
///
/// Equality, order and hash look at the value alone, so it can be a map key.
#[derive(Debug, Clone, Default)]
pub struct Spanned<T> {
    /// What was written.
    pub value: T,
    /// Where.
    pub span: Span,
}

impl<T> Spanned<T> {
    /// Joins a value and its place.
    pub fn new(value: T, span: Span) -> Self {
        Self { value, span }
    }
}

impl<T> std::ops::Deref for Spanned<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: PartialEq> PartialEq for Spanned<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<T: Eq> Eq for Spanned<T> {}

impl<T: std::hash::Hash> std::hash::Hash for Spanned<T> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.value.hash(state);
    }
}

impl std::borrow::Borrow<str> for Spanned<String> {
    fn borrow(&self) -> &str {
        &self.value
    }
}

/// One file's text.
#[derive(Debug)]
pub struct SourceFile {
    /// As the user named it; shown in messages.
    pub path: PathBuf,
    /// The whole text, UTF-8, without a byte-order mark.
    pub text: String,
    line_starts: Vec<u32>,
}

/// Why a file could not be read as source text.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The operating system refused.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: std::io::Error,
    },
    /// Not UTF-8.
    #[error("{} is not UTF-8 text (first bad byte at offset {offset})", path.display())]
    Encoding {
        /// The file.
        path: PathBuf,
        /// Bytes from the start of the file.
        offset: usize,
    },
    /// Larger than [`SourceFile::LIMIT`].
    #[error("{} has {size} bytes; a playbook or SQL file may have at most {limit}", path.display(), limit = SourceFile::LIMIT)]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
}

impl SourceFile {
    /// The largest file that is read, in bytes: spans are 32 bits wide and nobody
    /// reviews a playbook of this size.
    pub const LIMIT: u64 = 64 * 1024 * 1024;

    /// Reads a file; a UTF-8 byte-order mark is dropped.
    pub fn read(path: &Path) -> Result<Self, SourceError> {
        let read = |error| SourceError::Read { path: path.into(), error };
        let size = std::fs::metadata(path).map_err(read)?.len();
        if size > Self::LIMIT {
            return Err(SourceError::TooLarge { path: path.into(), size });
        }
        let bytes = std::fs::read(path).map_err(read)?;
        let text = String::from_utf8(bytes)
            .map_err(|error| SourceError::Encoding { path: path.into(), offset: error.utf8_error().valid_up_to() })?;
        Ok(Self::new(path, text))
    }

    /// Text that is already in memory.
    pub fn new(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        let mut text = text.into();
        if text.starts_with('\u{feff}') {
            text.drain(..'\u{feff}'.len_utf8());
        }
        let line_starts =
            std::iter::once(0).chain(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i as u32 + 1)).collect();
        Self { path: path.into(), text, line_starts }
    }

    /// Line and column of a byte offset, both from 1; columns count characters.
    pub fn line_column(&self, offset: u32) -> (usize, usize) {
        let line = self.line_starts.partition_point(|start| *start <= offset) - 1;
        let start = self.line_starts[line] as usize;
        let end = (offset as usize).clamp(start, self.text.len());
        (line + 1, String::from_utf8_lossy(&self.text.as_bytes()[start..end]).chars().count() + 1)
    }
}

/// All files read for one command.
#[derive(Debug, Clone, Default)]
pub struct Sources(Vec<Arc<SourceFile>>);

impl Sources {
    /// Adds a file and gives its id.
    pub fn add(&mut self, file: SourceFile) -> SourceId {
        self.0.push(Arc::new(file));
        SourceId(self.0.len() as u32 - 1)
    }

    /// The file of an id handed out by [`Sources::add`].
    pub fn get(&self, id: SourceId) -> &SourceFile {
        &self.0[id.0 as usize]
    }

    /// All files, in the order they were read.
    pub fn iter(&self) -> impl Iterator<Item = &SourceFile> {
        self.0.iter().map(Arc::as_ref)
    }

    /// The place in words: file, line and column.
    pub fn location(&self, span: Span) -> Location {
        let file = self.get(span.source);
        let (line, column) = file.line_column(span.start);
        Location { file: file.path.display().to_string(), line, column }
    }
}

/// A place for people and for the journal.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Location {
    /// The file as the user named it.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}
