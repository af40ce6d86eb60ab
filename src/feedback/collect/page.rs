//! What a person sees. Plain forms: every button works without a script, which only adds keys.

use super::desk::Counts;
use crate::feedback::comparison::{Comparison, shown};
use crate::page::escape;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// What the page is about beside its comparison.
pub(super) struct Frame<'a> {
    /// Path of the page, with its token.
    pub at: &'a str,
    /// What the script is known by.
    pub nonce: &'a str,
    /// Who decides.
    pub who: &'a str,
    pub counts: Counts,
}

/// An answer of one's own that was not accepted.
#[derive(Default)]
pub(super) struct Draft<'a> {
    /// What was written.
    pub text: &'a str,
    /// Why it was not accepted.
    pub problem: Option<&'a str>,
}

impl Frame<'_> {
    /// A comparison with what can be decided about it.
    pub fn comparison(&self, comparison: &Comparison, draft: &Draft) -> String {
        let Comparison { id, prompt, answers, .. } = comparison;
        let mut sides = answers.each_ref().map(shown);
        if comparison.is_turned() {
            sides.reverse();
        }
        let [left, right] = sides.each_ref().map(|side| escape(side));
        let prompt = escape(&shown(prompt));
        let Self { at, who, nonce, .. } = self;
        let hidden = format!(
            "<input type=\"hidden\" name=\"id\" value=\"{}\"><input type=\"hidden\" name=\"who\" value=\"{}\">",
            escape(id),
            escape(who)
        );
        let problem = draft.problem.map_or(String::new(), |problem| {
            format!("<p class=\"problem\" role=\"alert\">{}</p>\n", escape(problem))
        });
        let open = if draft.problem.is_some() { " open" } else { "" };
        let text = escape(draft.text);
        let body = format!(
            "<h2>Prompt</h2>\n<div class=\"text prompt\">{prompt}</div>\n\
             <form method=\"post\" action=\"{at}decide\">{hidden}\n\
             <div class=\"sides\">\n\
             <section><h2>Left</h2><div class=\"text\">{left}</div>\
             <button name=\"choice\" value=\"left\" data-key=\"1\" accesskey=\"1\">Left is better <kbd>1</kbd></button></section>\n\
             <section><h2>Right</h2><div class=\"text\">{right}</div>\
             <button name=\"choice\" value=\"right\" data-key=\"2\" accesskey=\"2\">Right is better <kbd>2</kbd></button></section>\n\
             </div>\n<p class=\"others\">\
             <button name=\"choice\" value=\"tie\" data-key=\"3\" accesskey=\"3\">Neither is better <kbd>3</kbd></button>\n\
             <button name=\"choice\" value=\"skip\" data-key=\"0\" accesskey=\"0\">Skip <kbd>0</kbd></button></p>\n\
             </form>\n\
             <details{open}><summary>Write a better answer</summary>\n{problem}\
             <form method=\"post\" action=\"{at}decide\">{hidden}\n\
             <p><label>Your answer<textarea name=\"text\" rows=\"6\">\n{text}</textarea></label></p>\n\
             <p>It is better than <label><input type=\"radio\" name=\"over\" value=\"left\" checked> the left one</label> \
             <label><input type=\"radio\" name=\"over\" value=\"right\"> the right one</label></p>\n\
             <p><button name=\"choice\" value=\"written\">Keep this answer</button></p>\n\
             </form></details>\n<script nonce=\"{nonce}\">{SCRIPT}</script>\n"
        );
        self.page(&body)
    }

    /// A few words, and the way back.
    pub fn words(&self, title: &str, text: &str, again: bool) -> String {
        let Self { at, who, .. } = self;
        let who: String = form_urlencoded::byte_serialize(who.as_bytes()).collect();
        let again = match again {
            true => format!("<p><a href=\"{at}?who={who}\" autofocus>Go on</a></p>\n"),
            false => String::new(),
        };
        self.page(&format!("<h2>{}</h2>\n<p>{}</p>\n{again}", escape(title), escape(text)))
    }

    fn page(&self, body: &str) -> String {
        let Self { at, who, counts, .. } = self;
        let Counts { all, decided, pairs, ties, skips, open } = counts;
        let more = if *open { ", more are being drawn" } else { "" };
        let who = escape(who);
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"referrer\" content=\"no-referrer\">\n\
             <title>{decided} of {all} decided</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
             <header><h1>Which answer is better?</h1>\n\
             <p id=\"counts\">{decided} of {all} comparisons are decided{more}: {pairs} preferences, {ties} ties, {skips} skips</p>\n\
             <progress max=\"{all}\" value=\"{decided}\"></progress>\n\
             <form method=\"get\" action=\"{at}\"><label>You are <input name=\"who\" value=\"{who}\" maxlength=\"80\"></label> <button>Change</button></form>\n\
             </header>\n{body}</main>\n</body>\n</html>\n"
        )
    }
}
