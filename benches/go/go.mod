module contextbench

go 1.23
