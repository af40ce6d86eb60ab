//! From tokens as they come to text as a person reads it: pieces that are final, without the white
//! space around the whole, up to the first stop string.

/// The text of one continuation so far.
#[derive(Debug, Default)]
pub struct Speech {
    /// Bytes of the text that were handed out.
    told: usize,
    /// A stop string was found.
    stopped: bool,
}

/// What a tokenizer writes for bytes that are no character yet.
const UNFINISHED: char = '\u{fffd}';

impl Speech {
    /// The next piece of `text`, which is all that was generated so far, and whether it goes on. Held
    /// back are characters that more bytes may finish, white space at the end, and the beginning of a
    /// stop string.
    pub fn next<'a>(&mut self, text: &'a str, stops: &[String]) -> (&'a str, bool) {
        let text = text.trim_start();
        let (text, found) = cut(text, stops);
        self.stopped |= found;
        let text = text.trim_end_matches(UNFINISHED).trim_end();
        let held = if found { 0 } else { begun(text, stops) };
        (self.tell(&text[..text.len() - held]), !self.stopped)
    }

    /// The last piece, when nothing follows.
    pub fn rest<'a>(&mut self, text: &'a str, stops: &[String]) -> &'a str {
        self.tell(whole(text, stops))
    }

    fn tell<'a>(&mut self, text: &'a str) -> &'a str {
        // A decoder may take back what it wrote; what was told stays.
        let piece = text.get(self.told..).unwrap_or_default();
        self.told += piece.len();
        piece
    }
}

/// All of a continuation: what the pieces of a [`Speech`] are together.
pub fn whole<'a>(text: &'a str, stops: &[String]) -> &'a str {
    cut(text.trim_start(), stops).0.trim_end()
}

/// All of a continuation in front of the first stop string, with the white space around it.
pub fn up_to_stop<'a>(text: &'a str, stops: &[String]) -> &'a str {
    cut(text, stops).0
}

/// The text in front of the first stop string, and whether there is one.
fn cut<'a>(text: &'a str, stops: &[String]) -> (&'a str, bool) {
    match stops.iter().filter_map(|stop| text.find(stop.as_str())).min() {
        Some(at) => (&text[..at], true),
        None => (text, false),
    }
}

/// Bytes at the end of `text` that begin a stop string.
fn begun(text: &str, stops: &[String]) -> usize {
    let ends = text.char_indices().map(|(at, _)| &text[at..]);
    ends.filter(|end| stops.iter().any(|stop| stop.starts_with(end)))
        .map(str::len)
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hands out every prefix of `text`.
    fn told(text: &str, stops: &[&str]) -> String {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let (mut speech, mut told) = (Speech::default(), String::new());
        for (end, c) in text.char_indices() {
            let so_far = &text[..end + c.len_utf8()];
            let (piece, goes_on) = speech.next(so_far, &stops);
            told += piece;
            if !goes_on {
                assert_eq!(told, whole(so_far, &stops), "{so_far}");
                return told;
            }
        }
        told += speech.rest(text, &stops);
        assert_eq!(told, whole(text, &stops));
        told
    }

    #[test]
    fn pieces_are_the_whole() {
        assert_eq!(told("  Hello, you  there \n", &[]), "Hello, you  there");
        assert_eq!(told("one\n\ntwo\n\nthree", &["\n\n"]), "one");
        assert_eq!(told("a###b##c", &["####", "###"]), "a");
        assert_eq!(told("ends with ##", &["###"]), "ends with ##");
        assert_eq!(told("é stops", &["é"]), "");
        assert_eq!(told("", &["x"]), "");
    }

    #[test]
    fn unfinished_characters_are_held_back() {
        let mut speech = Speech::default();
        assert_eq!(speech.next("caf\u{fffd}", &[]), ("caf", true));
        assert_eq!(speech.next("café", &[]), ("é", true));
        assert_eq!(speech.rest("café \u{fffd}", &[]), " \u{fffd}");
    }
}
