//! Names and decoders of types, looked up once per run.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::Database;
use super::decode::{Decoder, built_in};

/// Types that are not built in and have been seen.
#[derive(Debug, Default)]
pub struct TypeCache(Mutex<HashMap<u32, (String, Decoder)>>);

impl TypeCache {
    fn get(&self, oid: u32) -> Option<(String, Decoder)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&oid).cloned()
    }

    fn put(&self, oid: u32, found: &(String, Decoder)) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(oid, found.clone());
    }
}

impl Database {
    /// Name and decoder of a type. The control connection is asked, because the
    /// working one is busy giving rows; a type that only an open transaction knows
    /// is shown as text.
    pub(super) async fn type_of(&self, oid: u32) -> (String, Decoder) {
        if let Some(found) = built_in(oid).or_else(|| self.types.get(oid)) {
            return found;
        }
        match self.look_up(oid, 0).await {
            Some(found) => {
                self.types.put(oid, &found);
                found
            }
            None => (format!("oid {oid}"), Decoder::Text),
        }
    }

    async fn look_up(&self, oid: u32, depth: usize) -> Option<(String, Decoder)> {
        /// Domains over arrays of domains …: nobody nests them deeper by hand.
        const DEPTH: usize = 8;
        if let Some(found) = built_in(oid) {
            return Some(found);
        }
        let query = format!(
            "SELECT pg_catalog.format_type(t.oid, NULL), t.typtype = 'd', t.typbasetype, \
             t.typelem <> 0 AND t.typinput = 'pg_catalog.array_in'::pg_catalog.regproc, t.typelem, e.typdelim \
             FROM pg_catalog.pg_type t LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem WHERE t.oid = {oid}"
        );
        let row = self.ask(&query).await.ok()?.into_iter().next()?;
        let [Some(name), is_domain, base, is_array, element, delimiter] = row.as_slice() else { return None };
        let is_true = |text: &Option<String>| text.as_deref() == Some("t");
        let number = |text: &Option<String>| text.as_ref().and_then(|text| text.parse::<u32>().ok());
        let nested = if is_true(is_domain) {
            number(base)
        } else if is_true(is_array) {
            number(element)
        } else {
            None
        };
        let decoder = match nested {
            Some(nested) if depth < DEPTH => {
                let (_, decoder) = Box::pin(self.look_up(nested, depth + 1)).await?;
                if is_true(is_array) {
                    Decoder::Array { delimiter: delimiter.as_ref()?.chars().next()?, element: Box::new(decoder) }
                } else {
                    decoder
                }
            }
            _ => Decoder::Text,
        };
        Some((name.clone(), decoder))
    }
}
