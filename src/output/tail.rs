//! The last 64 KiB of a stream, in memory that does not grow.

const CAPACITY: usize = 64 * 1024;

#[derive(Debug, Default)]
pub(super) struct Tail {
    buffer: Vec<u8>,
    /// Where the oldest byte is, once the buffer is full.
    oldest: usize,
    complete: Option<bool>,
}

impl Tail {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let kept = &bytes[bytes.len().saturating_sub(CAPACITY)..];
        let room = CAPACITY - self.buffer.len();
        let (grow, wrap) = kept.split_at(kept.len().min(room));
        self.buffer.extend_from_slice(grow);
        if !wrap.is_empty() || kept.len() < bytes.len() {
            self.complete = Some(false);
        }
        let (before_end, from_start) = wrap.split_at(wrap.len().min(CAPACITY - self.oldest));
        self.buffer[self.oldest..self.oldest + before_end.len()].copy_from_slice(before_end);
        self.buffer[..from_start.len()].copy_from_slice(from_start);
        self.oldest = (self.oldest + wrap.len()) % CAPACITY;
    }

    /// Whether nothing was forgotten.
    pub(super) fn is_complete(&self) -> bool {
        self.complete.unwrap_or(true)
    }

    /// As text, without trailing newlines; a character cut in two at the front is left out.
    pub(super) fn into_text(mut self) -> String {
        self.buffer.rotate_left(self.oldest);
        let cut = if self.is_complete() { 0 } else { self.buffer.iter().take(3).take_while(|byte| **byte & 0xC0 == 0x80).count() };
        let text = String::from_utf8_lossy(&self.buffer[cut..]);
        text.trim_end_matches(['\r', '\n']).to_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_end_is_kept_whatever_the_chunks(sizes in prop::collection::vec(0usize..50_000, 0..12)) {
            let mut tail = Tail::default();
            let mut all = Vec::new();
            for (index, size) in sizes.iter().enumerate() {
                let chunk: Vec<u8> = (0..*size).map(|at| b'a' + ((at + index) % 23) as u8).collect();
                tail.push(&chunk);
                all.extend(chunk);
            }
            prop_assert_eq!(tail.is_complete(), all.len() <= CAPACITY);
            let expected = &all[all.len().saturating_sub(CAPACITY)..];
            prop_assert!(tail.into_text().as_bytes() == expected);
        }
    }

    #[test]
    fn text_ends_without_newlines_and_begins_with_a_whole_character() {
        let mut tail = Tail::default();
        tail.push("ü".repeat(CAPACITY).as_bytes());
        tail.push(b"x\r\n\n");
        let text = tail.into_text();
        assert!(text.starts_with('ü') && text.ends_with('x'), "{}", text.len());
    }
}
