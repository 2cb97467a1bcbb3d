"""Pages about what crossed the links: `thinwire report` of what `thinwire run --report` wrote."""

import html.parser
import json
import os
import shutil
import unittest

import support
from support import OPT

needs_gnuplot = unittest.skipUnless(shutil.which("gnuplot"), "no gnuplot here")


class Page(html.parser.HTMLParser):
    """A page's text, its tags, and all that its attributes could load."""

    VOID = {"meta", "br", "link", "img", "input"}

    def __init__(self, path):
        super().__init__()
        self.tags, self.ids, self.loads, self.open = [], [], [], []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "data", "action") or name.startswith("on"):
                self.loads.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if self.open.pop() != tag:
            raise AssertionError(f"</{tag}> closes another element")

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


class ReportTestCase(support.TestCase):

    def record(self, name, *flags, ranks=0):
        path = self.folder / name
        self.succeed(["run", "--model", OPT, "--prompt", "Once upon a time", "--max-tokens", "8",
                      "--ignore-eos", "--report", path, *flags], ranks)
        return path

    def report(self, *recordings):
        path = self.folder / "report.html"
        result = self.succeed(["report", *recordings, "-o", path])
        self.assertEqual(result.stdout, "")
        page = Page(path)
        self.assertEqual(page.open, [])
        self.assertEqual(sorted(page.ids), sorted(set(page.ids)))
        for load in page.loads:  # a picture's own symbols
            self.assertTrue(load.startswith("#") and load[1:] in page.ids, load)
        self.assertNotIn("script", page.tags)
        return page

    def hand_made(self, **changes):
        report = {"model": "models/small", "tp": 2, "pp": 1, "dtype": "fp16",
                  "wire_format": "one-shot-q4", "prompt_tokens": 10, "generated_tokens": 30,
                  "seconds": 2.0, "num_layers": 4, "step_us": 1900000, "wire": {"sites": {
                      "mlp_out": {"logical_bytes": 45600000, "payload_bytes": 12000000,
                                  "metadata_bytes": 312000, "calls": 320, "transfer_us": 950000,
                                  "codec_us": 190000}}}}
        return self.write("hand.json", json.dumps({**report, **changes}))


@needs_gnuplot
class PageTest(ReportTestCase):

    @support.needs_mpi
    def test_two_dtypes_side_by_side(self):
        recordings = [self.record(f"{dtype}.json", "--tp", "2", "--dtype", dtype, ranks=2)
                      for dtype in ("fp32", "fp16")]
        page = self.report(*recordings)
        for path, label in zip(recordings, ("native, fp32", "native, fp16")):
            total = json.loads(path.read_text())["wire"]["total"]
            percent = 100 * (total["payload_bytes"] + total["metadata_bytes"]) / (
                total["logical_bytes"])
            self.assertIn(f"{label} sent {percent:.0f} % of fp16's bytes: ", page.text)
            self.assertIn(f"{total['calls']:,}".replace(",", "\u202f"), page.text)
        self.assertEqual(page.tags.count("svg"), 3)
        for text in ("opt-nano", "2 × 1", "attention_out", "logits", "what fp16 would have sent"):
            self.assertIn(text, page.text)

    def test_one_rank_sent_nothing(self):
        page = self.report(self.record("alone.json"))
        self.assertIn("native: one rank, nothing sent", page.text)
        self.assertNotIn("svg", page.tags)

    def test_the_strategy_is_in_the_headline(self):
        page = self.report(self.hand_made())
        self.assertIn("one-shot-q4 sent 27 % of fp16's bytes: 12.3 MB instead of 45.6 MB",
                      page.text)
        self.assertIn("in each decoder layer", page.text)

    def test_strings_are_text_not_markup_and_no_commands(self):
        mark = self.folder / "ran"
        for nasty in ("<script>alert(1)</script>", f"'; system \"touch {mark}\"; '`touch {mark}`",
                      "\"><img src=x onerror=alert(1)>", "]]></svg></main>&amp;\\{"):
            with self.subTest(nasty=nasty):
                report = json.loads(self.hand_made(model=nasty, scheme=nasty, dtype=nasty,
                                                   wire_format=nasty).read_text())
                report["wire"]["sites"][nasty] = report["wire"]["sites"]["mlp_out"]
                page = self.report(self.write("nasty.json", json.dumps(report)))
                self.assertIn(nasty, page.text)
        self.assertFalse(mark.exists())

    def test_collectives_by_size(self):
        lines = [{"strategy": strategy, "ranks": 2, "logical_bytes": size,
                  "p50_us": 20 + size / 9e3, "p99_us": 50 + size / 9e3, "wire_bytes": size // 2,
                  "effective_gbps": 1.5, "wire_gbps": 0.75, "error": 0.0}
                 for strategy in ("fp16", "one-shot-q8") for size in (4096, 65536, 1 << 20)]
        page = self.report(self.write("comm.json", lines), self.hand_made())
        self.assertEqual(page.tags.count("svg"), 3)
        for text in ("one-shot-q8", "64 KiB", "1 MiB", "12.3 MB instead of 45.6 MB"):
            self.assertIn(text, page.text)

    def test_a_page_replaces_the_one_before(self):
        recording = self.hand_made()
        (self.folder / "report.html").write_text("old")
        self.report(recording)
        self.assertEqual(sorted(file.name for file in self.folder.iterdir()),
                         ["hand.json", "report.html"])


class ErrorTest(ReportTestCase):

    def fail_report(self, recordings, exit_code, *parts, output=None, **kwargs):
        output = output or self.folder / "report.html"
        self.fail_alike(["report", *recordings, "-o", output], exit_code, *parts, parallel=(),
                        **kwargs)
        self.assertFalse((self.folder / "report.html").exists())

    def test_what_is_no_report(self):
        broken = self.write("broken.json", "{\"wire\": {\n")
        self.fail_report([broken], 1, broken, "line 2", "not valid JSON")
        missing = self.folder / "missing.json"
        self.fail_report([self.hand_made(), missing], 1, missing, "No such file", ranks=False)
        self.fail_report([OPT / "config.json"], 1, OPT / "config.json",
                         "expected what thinwire run --report writes", "without \"wire\"",
                         ranks=False)
        self.fail_report([self.write("empty.json", "")], 1, "empty.json", "empty", ranks=False)
        self.fail_report([OPT], 1, OPT, ranks=False)

    def test_fields_of_wrong_types(self):
        for changes, *parts in (({"tp": 0}, "\"tp\"", "positive integer", "0"),
                                ({"seconds": "long"}, "\"seconds\"", "number", "long"),
                                ({"wire": {"sites": {"logits": 3}}}, "\"logits\"", "object", "3"),
                                ({"wire": {"sites": {"logits": {"logical_bytes": 1}}}},
                                 "\"logits\"", "\"payload_bytes\"", "found nothing")):
            with self.subTest(changes=changes):
                path = self.hand_made(**changes)
                self.fail_report([path], 1, path, *parts, ranks=False)

    def test_outputs_that_cannot_be_written(self):
        output = self.folder / "none" / "report.html"
        self.fail_report([self.hand_made()], 1, output, "No such file", output=output)
        self.fail_report([self.hand_made()], 1, self.folder, "expected a file", output=self.folder,
                         ranks=False)

    def test_missing_arguments(self):
        self.fail_alike(["report", "-o", "report.html"], 2, "recordings", "required", parallel=())
        self.fail_alike(["report", self.hand_made()], 2, "--output", "required", ranks=False)

    def test_without_gnuplot_the_package_is_named(self):
        empty = self.folder / "bin"
        empty.mkdir()
        result = support.run(["report", self.hand_made(), "-o", self.folder / "report.html"],
                             env={"PATH": os.fspath(empty)})
        self.check_error(result, 1, "gnuplot: not found", "gnuplot-nox")
        self.assertFalse((self.folder / "report.html").exists())


if __name__ == "__main__":
    support.main()
