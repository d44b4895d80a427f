//! Languages on the command line: codes, locales and English names.

/// The codes and English names of the languages that speech models usually know.
const NAMES: &str = "af afrikaans;am amharic;ar arabic;as assamese;az azerbaijani;ba bashkir;be belarusian;\
    bg bulgarian;bn bengali;bo tibetan;br breton;bs bosnian;ca catalan valencian;cs czech;cy welsh;da danish;\
    de german;el greek;en english;es spanish castilian;et estonian;eu basque;fa persian;fi finnish;fo faroese;\
    fr french;gl galician;gu gujarati;ha hausa;haw hawaiian;he hebrew;hi hindi;hr croatian;ht haitian;\
    hu hungarian;hy armenian;id indonesian;is icelandic;it italian;ja japanese;jw javanese;ka georgian;kk kazakh;\
    km khmer;kn kannada;ko korean;la latin;lb luxembourgish;ln lingala;lo lao;lt lithuanian;lv latvian;\
    mg malagasy;mi maori;mk macedonian;ml malayalam;mn mongolian;mr marathi;ms malay;mt maltese;\
    my burmese myanmar;ne nepali;nl dutch flemish;nn nynorsk;no norwegian;oc occitan;pa punjabi panjabi;pl polish;\
    ps pashto;pt portuguese;ro romanian moldovan;ru russian;sa sanskrit;sd sindhi;si sinhala;sk slovak;\
    sl slovenian;sn shona;so somali;sq albanian;sr serbian;su sundanese;sv swedish;sw swahili;ta tamil;te telugu;\
    tg tajik;th thai;tk turkmen;tl tagalog;tr turkish;tt tatar;uk ukrainian;ur urdu;uz uzbek;vi vietnamese;\
    yi yiddish;yo yoruba;yue cantonese;zh chinese mandarin";

/// A language in the form of tasks: a code of two or three letters, or `auto`.
///
/// Of a locale (`en_US.UTF-8`) or a tag (`zh-TW`), the language alone counts, because models know
/// no countries and scripts.
pub(super) fn code(text: &str) -> Result<String, String> {
    let text = text.trim().to_ascii_lowercase();
    if text == "auto" {
        return Ok(text);
    }
    for entry in NAMES.split(';') {
        let mut words = entry.split_ascii_whitespace();
        let Some(code) = words.next() else { continue };
        if words.any(|name| name == text) {
            return Ok(code.to_owned());
        }
    }
    let mut parts = text.split(['-', '_', '.', '@']);
    let language = parts.next().unwrap_or_default();
    let is_code = (2..=3).contains(&language.len()) && language.bytes().all(|byte| byte.is_ascii_lowercase());
    let is_tag = text.len() <= 35
        && parts.all(|part| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        });
    if is_code && is_tag {
        Ok(language.to_owned())
    } else {
        Err("expected a code such as en or de, a name such as German, or auto".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_locales_and_names_are_understood() {
        for (text, expected) in [
            ("de", "de"),
            ("DE", "de"),
            ("German", "de"),
            ("mandarin", "zh"),
            ("en_US", "en"),
            ("en_US.UTF-8", "en"),
            ("zh-TW", "zh"),
            ("zh-Hant-TW", "zh"),
            ("Yue", "yue"),
            ("auto", "auto"),
        ] {
            assert_eq!(code(text).as_deref(), Ok(expected), "{text}");
        }
        for text in ["", "e", "e!", "Klingon", "en-", "de/../x", "123", "en_US;x"] {
            assert!(code(text).is_err(), "{text}");
        }
    }
}
