"""The documents name files and tests; all of them exist."""

import pathlib
import re
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]


class Documents(unittest.TestCase):
    def test_every_test_that_is_named_exists(self):
        for document in DOCUMENTS:
            for file, test in re.findall(r"`([\w/.]+\.rs)::(\w+)`", document.read_text()):
                with self.subTest(document=document.name, test=f"{file}::{test}"):
                    self.assertTrue(re.search(rf"\bfn {test}\b", (ROOT / file).read_text()), "there is no such test")

    def test_every_file_that_is_named_exists(self):
        for document in DOCUMENTS:
            named = re.findall(r"`((?:src|protocol|tests|scripts|docs|schemas|benches)/[\w/.-]*)`", document.read_text())
            for path in named:
                with self.subTest(document=document.name, path=path):
                    self.assertTrue((ROOT / path).exists())

    def test_every_link_leads_somewhere(self):
        for document in DOCUMENTS:
            for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
                if "://" not in target:
                    with self.subTest(document=document.name, target=target):
                        self.assertTrue((document.parent / target).exists())


if __name__ == "__main__":
    unittest.main()
