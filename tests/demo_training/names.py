"""The names in the demo model's training text: those of the task, and many more.

With the names of the task alone the model would memorise them. With two hundred names the rule is easier to
learn.
"""

from __future__ import annotations

from pahq_server.tasks.ioi import NAMES, words

# These never occur in a training text of the task's shape.
HELD_OUT_NAMES = NAMES[3::4]
EXTRA_NAMES = words(
    """
    Abby Ada Alan Albert Alex Alice Alma Amber Andrea Angela Annie April Arthur Ashley Audrey Ava
    Barbara Beatrice Becky Bella Beth Betty Bill Billy Bonnie Brad Brandon Brenda Bruce Bryan Caleb
    Calvin Carl Carla Carmen Carol Cathy Chloe Chris Cindy Claire Clara Cody Colin Connor Craig Dan
    Dave Dean Debbie Dennis Diana Diego Donald Donna Dora Doris Doug Dylan Eddie Edith Edward Elena
    Eli Ella Ellen Elsa Erin Ethan Eva Evan Faith Felix Fiona Frank Fred Gail Gary Gavin George Gina
    Gloria Grace Greg Gwen Hank Hannah Harold Harry Hazel Heather Helen Henry Holly Howard Hugo Ian
    Ida Irene Iris Isaac Isabel Ivan Jake Jamie Janet Jean Jeff Jenny Jerry Jesse Jill Jim Joan
    Joe Joel Jonah Jordan Joyce Judy Julia Julie June Karen Karl Katie Keith Kelly Ken Kim Kurt Kyra
    Larry Leah Lena Leon Linda Logan Lola Louis Lucas Luke Luna Lydia Maggie Marco Maria Martin Megan
    Mike Milo Molly Monica Nancy Naomi Nathan Neil Nick Nina Noah Nora Norman Oliver Olivia Oscar Otto
    Owen Pam Pedro Phil Philip Rita Roger Rosa Ruby Russell Ruth Sally Sandra Sean Simon Sofia Sonia
    Stella Steve Susan Ted Teresa Tina Todd Tony Tracy Victor Violet Walter Wendy Zoe
    """
)
TRAINED_NAMES = (*(name for name in NAMES if name not in HELD_OUT_NAMES), *EXTRA_NAMES)
ALL_NAMES = (*NAMES, *EXTRA_NAMES)
