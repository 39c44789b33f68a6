//! Text in a page. Everything that comes from a policy, a snapshot or a server is text of somebody else: it is escaped,
//! always, by [`Html`].

use std::fmt::Write;

/// Text as HTML shows it.
pub struct Html<'a>(pub &'a str);

impl std::fmt::Display for Html<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                // What could hide or turn text around is shown as what it is.
                c if c.is_control() && c != '\n' => write!(f, "\\x{:02x}", c as u32)?,
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => write!(f, "\\u{:04x}", c as u32)?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_a_snapshot_is_text() {
        let odd = "<script>alert('x')</script>&\"\u{202e}\u{1b}[2J";
        let shown = Html(odd).to_string();
        assert_eq!(shown, "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;&quot;\\u202e\\x1b[2J");
    }
}
