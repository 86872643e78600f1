"""The words in the demo model's training text: those of the tasks, and many more names.

With the names of the tasks alone the model would memorise them. With two hundred names the rule is easier to
learn. What is held out never occurs in a text of its task's shape, and is what the tasks are measured with.
"""

from __future__ import annotations

from pahq_server.tasks import greater_than, pronoun
from pahq_server.tasks.generation import words
from pahq_server.tasks.ioi import NAMES

_EXTRA_FEMALE = words(
    """
    Abby Ada Alice Alma Amber Andrea Angela Annie April Ashley Audrey Ava Barbara Beatrice Becky Bella Beth
    Betty Bonnie Brenda Carla Carmen Carol Cathy Chloe Cindy Claire Clara Debbie Diana Donna Dora Doris
    Edith Elena Ella Ellen Elsa Erin Eva Faith Fiona Gina Gloria Grace Gwen Hannah Hazel Heather Helen Holly
    Ida Irene Iris Isabel Janet Jenny Jill Joan Joyce Judy Julia Julie June Karen Katie Kyra Leah Lena Linda
    Lola Luna Lydia Maggie Maria Megan Molly Monica Nancy Naomi Nina Nora Olivia Pam Rita Rosa Ruby Ruth
    Sally Sandra Sofia Sonia Stella Susan Teresa Tina Violet Wendy Zoe
    """
)
_EXTRA_MALE = words(
    """
    Alan Albert Arthur Bill Billy Brad Brandon Bruce Bryan Caleb Calvin Carl Cody Colin Connor Craig Dan Dave
    Dean Diego Donald Doug Dylan Eddie Edward Eli Ethan Evan Felix Frank Fred Gary Gavin George Greg Hank
    Harold Harry Henry Howard Hugo Ian Isaac Ivan Jake Jeff Jerry Jim Joe Joel Jonah Karl Keith Ken Kurt Larry
    Leon Louis Lucas Luke Marco Martin Mike Milo Nathan Neil Nick Noah Norman Oliver Oscar Otto Owen Pedro
    Phil Philip Roger Russell Sean Simon Steve Ted Todd Tony Victor Walter
    """
)
# Given to both.
_EXTRA_OTHER = words("Alex Chris Dennis Gail Jamie Jean Jesse Jordan Kelly Kim Logan Tracy")

# For "ioi" and "pronoun".
HELD_OUT_NAMES = NAMES[3::4]
# For "greater_than".
HELD_OUT_STARTS = greater_than.STARTS[3::5]

EXTRA_NAMES = (*_EXTRA_FEMALE, *_EXTRA_MALE, *_EXTRA_OTHER)
ALL_NAMES = (*NAMES, *EXTRA_NAMES)
FEMALE_NAMES = (*pronoun.FEMALE_NAMES, *_EXTRA_FEMALE)
MALE_NAMES = (*pronoun.MALE_NAMES, *_EXTRA_MALE)
TRAINED_NAMES = tuple(name for name in ALL_NAMES if name not in HELD_OUT_NAMES)
TRAINED_STARTS = tuple(year for year in greater_than.STARTS if year not in HELD_OUT_STARTS)
