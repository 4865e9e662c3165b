(* Reads runs from standard input and prints what the extracted model says of them.

   A run is whitespace-separated numbers: n, recent, the number of budgets, the budgets; n times 0
   or 1, whether step t evicts; then row 0 with 1 entry, row 1 with 2, and so on. For every budget one
   line: "run" and, for each token, the step after which the budget's own run loses it (n if it never
   does); and the same with "stack" from the one stack of all budgets. *)

open Model

let rec nat_of_int i = if i = 0 then O else S (nat_of_int (i - 1))
let rec int_of_nat = function O -> 0 | S m -> 1 + int_of_nat m

let rec positive_of_int i =
  if i = 1 then XH
  else if i land 1 = 1 then XI (positive_of_int (i lsr 1))
  else XO (positive_of_int (i lsr 1))

let z_of_int i = if i = 0 then Z0 else if i > 0 then Zpos (positive_of_int i) else Zneg (positive_of_int (-i))
let number () = Scanf.scanf " %d" (fun i -> i)

(* List.init does not promise to call its function in order. *)
let rec read count f = if count = 0 then [] else let x = f () in x :: read (count - 1) f

let show name answers =
  List.iter
    (fun row -> print_endline (String.concat " " (name :: List.map (fun t -> string_of_int (int_of_nat t)) row)))
    answers

let () =
  try
    while true do
      let n = number () in
      let recent = nat_of_int (number ()) in
      let budgets = read (number ()) (fun () -> nat_of_int (number ())) in
      let steps = read n (fun () -> number () = 1) in
      let next = ref 0 in
      let table = read n (fun () -> incr next; read !next (fun () -> z_of_int (number ()))) in
      show "run" (by_runs table recent steps budgets);
      show "stack" (by_stack table recent steps budgets);
      flush stdout
    done
  with End_of_file | Scanf.Scan_failure _ -> ()
