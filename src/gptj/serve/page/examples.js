/** Beginnings in the manner of those that GPT-J was introduced with in 2021: arithmetic, a theorem,
 * a question about badgers, code, and geese. */

export const EXAMPLES = [
  {
    name: "Arithmetic",
    text:
      "Question: A baker fills 7 trays with 12 rolls each and sells 29 of them before noon. " +
      "How many rolls are left?\n" +
      "Answer: 7 times 12 is 84, and 84 minus 29 is 55. There are 55 rolls left.\n\n" +
      "Question: A library has 9 shelves of 40 books. Readers borrow 75 of them. " +
      "How many books are left?\n" +
      "Answer:",
  },
  {
    name: "Theorem",
    text:
      "Theorem 2.1. There are infinitely many prime numbers.\n\n" +
      "Proof. Suppose there were only finitely many, and let N be their product plus one. Then",
  },
  {
    name: "Badgers",
    text: "Q: Why do badgers dig a sett with so many entrances?\nA:",
  },
  {
    name: "Code",
    mono: true,
    text:
      "def is_palindrome(text: str) -> bool:\n" +
      '    """Whether text reads the same both ways, case and spaces aside."""\n',
  },
  {
    name: "Geese",
    text:
      "On the first morning of October the geese came back to the harbour town, " +
      "and this year they had brought luggage.",
  },
];
