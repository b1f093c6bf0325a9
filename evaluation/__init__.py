"""COCO-style evaluation of any data set: detections to results, results to numbers, numbers to a report."""
