//! Answers as they come, and as they must not.

use proptest::prelude::*;

use super::*;

fn wrapped(value: &str) -> String {
    format!(
        "<?xml version='1.0'?>\n<methodResponse>\n<params>\n<param>\n{value}\n</param>\n</params>\n</methodResponse>\n"
    )
}

fn read(value: &str) -> Result<Value, String> {
    answer(&wrapped(value)).map(|answer| match answer {
        Answer::Value(value) => value,
        Answer::Fault { .. } => panic!("a fault"),
    })
}

#[test]
fn call_is_escaped() {
    let xml = call("supervisor.stopProcess", &[Argument::Text("a<&>\u{1}b"), Argument::Bool(false)]);
    assert_eq!(
        xml,
        "<?xml version=\"1.0\"?><methodCall><methodName>supervisor.stopProcess</methodName><params>\
         <param><value><string>a&lt;&amp;&gt;\u{fffd}b</string></value></param>\
         <param><value><boolean>0</boolean></value></param></params></methodCall>"
    );
}

#[test]
fn values() {
    assert_eq!(read("<value><int> -7 </int></value>"), Ok(Value::Int(-7)));
    assert_eq!(read("<value><boolean>1</boolean></value>"), Ok(Value::Bool(true)));
    assert_eq!(read("<value>plain &amp; &#65;<![CDATA[<x>]]></value>"), Ok(Value::Text("plain & A<x>".into())));
    assert_eq!(read("<value><string/></value>"), Ok(Value::Text(String::new())));
    let list = "<value><array><data><value><struct>\n<member><name>state</name><value><i4>20</i4></value></member>\n\
                </struct></value></data></array></value>";
    let record = Value::Record(BTreeMap::from([("state".to_owned(), Value::Int(20))]));
    assert_eq!(record.int("state"), Ok(20));
    assert_eq!(record.text("state"), Err("`state` is a number, not a text".to_owned()));
    assert_eq!(record.int("pid"), Err("there is no `pid`".to_owned()));
    assert_eq!(read(list), Ok(Value::List(vec![record])));
}

#[test]
fn faults() {
    let fault = "<methodResponse><fault><value><struct><member><name>faultCode</name><value><int>10</int></value></member>\
                 <member><name>faultString</name><value><string>BAD_NAME: x</string></value></member></struct></value>\
                 </fault></methodResponse>";
    assert_eq!(answer(fault), Ok(Answer::Fault { code: 10, text: "BAD_NAME: x".to_owned() }));
    assert!(answer("<methodResponse><fault><value><int>1</int></value></fault></methodResponse>").is_err());
}

#[test]
fn what_is_no_answer() {
    let long = "x".repeat(9_000);
    for text in
        ["", "plain", "{}", "<html></html>", "<methodResponse/>", "<a></b>", "<a/><b/>", "<methodResponse>", &long]
    {
        assert!(answer(text).is_err(), "{text}");
    }
    assert!(read("<value><int>9999999999999999999999</int></value>").is_err());
    assert!(read("<value><int>1</int><int>2</int></value>").is_err());
    assert!(read("<value>&unknown;</value>").is_err());
    assert!(read("<value>&#xD800;</value>").is_err());
    assert!(answer("<!DOCTYPE a [<!ENTITY b 'c'>]><methodResponse/>").is_err());
    let deep = "<value><array><data>".repeat(200_000);
    assert!(read(&deep).is_err_and(|why| why.contains("deep")));
    let wide = format!("<value><array><data>{}</data></array></value>", "<value/>".repeat(ELEMENTS));
    assert!(read(&wide).is_err_and(|why| why.contains("elements")));
}

proptest! {
    #[test]
    fn any_text_is_read_without_panic(text in "\\PC*") {
        let _ = answer(&text);
    }

    #[test]
    fn any_tags_are_read_without_panic(parts in prop::collection::vec(prop_oneof![
        Just("<methodResponse>"), Just("</methodResponse>"), Just("<params>"), Just("</params>"), Just("<param>"),
        Just("</param>"), Just("<value>"), Just("</value>"), Just("<int>"), Just("</int>"), Just("<struct>"),
        Just("</struct>"), Just("<member>"), Just("</member>"), Just("<name>"), Just("</name>"), Just("<array>"),
        Just("</array>"), Just("<data>"), Just("</data>"), Just("<fault>"), Just("</fault>"), Just("7"), Just("&#0;"),
        Just("&lt"), Just("<![CDATA["), Just("]]>"), Just("<!--"), Just("<?"), Just("<value/>"),
    ], 0..40)) {
        let _ = answer(&parts.concat());
    }

    #[test]
    fn a_text_survives_the_way(text in "[^\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\u{fffe}\u{ffff}]*") {
        let mut xml = String::from("<value><string>");
        escape(&mut xml, &text);
        xml.push_str("</string></value>");
        prop_assert_eq!(read(&xml), Ok(Value::Text(text)));
    }

    #[test]
    fn every_truncation_is_an_error(cut in 0_usize..100) {
        let xml = wrapped("<value><string>a &amp; b</string></value>");
        let whole = xml.trim_end();
        prop_assume!(cut < whole.len());
        prop_assert!(answer(&whole[..cut]).is_err());
    }
}
