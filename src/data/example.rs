//! A tokenized training example: what the tokenizer makes of a row and the packer lays out.

/// One tokenized sequence with the place where its response starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Token ids, beginning-of-sequence and end-of-sequence tokens included.
    pub ids: Vec<u32>,
    /// Index in `ids` of the first response token; `ids[response_start..]` are averaged by the
    /// odds ratio. For plain text every predicted token is response: 1.
    pub response_start: usize,
}

/// A preference pair, or a single sequence where `rejected` is absent (SFT rows, labelled rows, plain
/// text).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Index of the source row, for messages about it.
    pub row: usize,
    /// Prompt and preferred answer.
    pub chosen: Sequence,
    /// Prompt and rejected answer.
    pub rejected: Option<Sequence>,
    /// Whether the answer is one to be given, of a row that says so in the place of a rejected answer.
    pub desirable: Option<bool>,
}
