//! Declared secrets, and the one redactor in front of every sink.
//!
//! A [`Secret`] cannot be printed by accident. The [`Redactor`] replaces every
//! declared secret, also in base64 and URL-encoded form, with `***` in text and in
//! byte streams, across chunk borders. It cannot know secrets nobody declared.

use std::sync::Arc;

/// A secret's value; `Debug` hides it, there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// Replaces secrets in everything that leaves the process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Redactor(Arc<Vec<String>>);

impl Redactor {
    /// Knows these secrets and their encoded forms.
    pub fn new<'a>(_secrets: impl IntoIterator<Item = &'a Secret>) -> Self {
        unimplemented!()
    }

    /// Text without secrets.
    pub fn text<'a>(&self, _text: &'a str) -> std::borrow::Cow<'a, str> {
        unimplemented!()
    }

    /// A JSON value without secrets, in keys and values.
    pub fn json(&self, _value: serde_json::Value) -> serde_json::Value {
        unimplemented!()
    }

    /// A filter for a byte stream.
    pub fn stream(&self) -> RedactingStream {
        unimplemented!()
    }
}

/// Redacts bytes that arrive in chunks: holds back a tail that may be the
/// beginning of a secret.
#[derive(Debug)]
pub struct RedactingStream {
    held: Vec<u8>,
}

impl RedactingStream {
    /// Takes a chunk, gives what is safe to pass on.
    pub fn push(&mut self, _chunk: &[u8]) -> Vec<u8> {
        let _ = &self.held;
        unimplemented!()
    }

    /// Gives what was held back at the end of the stream.
    pub fn finish(self) -> Vec<u8> {
        unimplemented!()
    }
}
