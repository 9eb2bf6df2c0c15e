def picture(rows):
    pass
