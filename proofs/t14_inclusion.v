(* T7, the twin of 14-inclusion.md: inclusion, and one stack for all budgets.

   Modelled: tokens, a strict total order of the tokens for each step, and a cache that removes the
   lowest token until k are left (Common.v). The order of a step depends on the step alone; so do
   the steps at which a rule evicts, [evicts], any set of steps at all. A rule that evicts at every
   step from the prompt's end on is one case; one that evicts now and then, or once, or never, is
   another.

   Proved:
   - [trim_inclusion], the widened step: if the smaller cache lies in the larger and the larger
     holds at most one token more, then the same is true after both have evicted;
   - [inclusion]: the cache of a smaller budget lies in that of a larger one, before and after every
     step, hence also what is attended, hence with nonnegative attention the attended mass;
   - [one_stack]: the loop that keeps one stack of all tokens, with a pocket of tokens that came
     since the last eviction, holds the cache of budget k in its first k places and the pocket. The
     loop is that of h2osim/engines/stack_loop.py: the first eviction sorts, later ones percolate;
   - [carried_is_evicted]: what is carried past depth k is the token that budget k evicts. *)

From mathcomp Require Import all_ssreflect.
From H2O Require Import Common.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Section Orders.

Variable low : rel nat.
Hypothesis order : strict_order low.

Lemma perm_sub (s s' : seq nat) :
  uniq s -> uniq s' -> {subset s <= s'} ->
  perm_eq s' (s ++ [seq x <- s' | x \notin s]).
Proof.
move=> us us' ss; apply: uniq_perm => //.
  rewrite cat_uniq us filter_uniq // andbT; apply/hasPn => x.
  by rewrite mem_filter => /andP[].
move=> x; rewrite mem_cat mem_filter; case xs: (x \in s) => //=.
by rewrite (ss _ xs).
Qed.

(* The widened step. *)
Theorem trim_inclusion k s s' :
  uniq s -> uniq s' -> {subset s <= s'} -> size s' <= (size s).+1 ->
  {subset trim low k s <= trim low k.+1 s'} /\
  size (trim low k.+1 s') <= (size (trim low k s)).+1.
Proof.
move=> us us' ss sz; split; last first.
  rewrite !size_trim; case: (leqP k (size s)) => ks; first exact: geq_minl.
  exact: leq_trans (geq_minr _ _) sz.
move=> x; rewrite !mem_trim // => /andP[xs xk]; rewrite (ss _ xs) /=.
rewrite /above (permP (perm_sub us us' ss)) count_cat ltnS.
apply: leq_trans xk; rewrite -addn1 leq_add2l; apply: leq_trans (count_size _ _) _.
move: sz; rewrite (perm_size (perm_sub us us' ss)) size_cat -addn1.
by rewrite leq_add2l.
Qed.

(* Trimming keeps the first k of whatever ranks above a token. *)
Lemma above_trim k s v : uniq s -> above low v (trim low k s) = minn k (above low v s).
Proof.
move=> us; pose u := [seq x <- s | low v x].
have uu : uniq u by apply: filter_uniq.
have -> : above low v (trim low k s) = size (trim low k u).
  rewrite /above -size_filter; apply/perm_size/uniq_perm.
  - by apply/filter_uniq/trim_uniq.
  - exact: trim_uniq.
  move=> x; rewrite mem_filter !mem_trim // mem_filter.
  case vx: (low v x) => //=; case xs: (x \in s) => //=; congr (_ < k).
  rewrite /above /u count_filter; apply: eq_in_count => y ys /=.
  by case xy: (low x y) => //=; rewrite (low_trans order vx xy).
by rewrite size_trim size_filter.
Qed.

Lemma trim_cat k s w : uniq (s ++ w) ->
  perm_eq (trim low k (trim low k s ++ w)) (trim low k (s ++ w)).
Proof.
move=> us; have /and3P[us1 us2 us3] : [&& uniq s, ~~ has (mem s) w & uniq w].
  by rewrite -cat_uniq.
have ut : uniq (trim low k s ++ w).
  apply: subseq_uniq us; apply: cat_subseq => //; exact: trim_subseq.
apply: uniq_perm; try exact: trim_uniq.
move=> v; rewrite !mem_trim // !mem_cat mem_trim //.
have -> a b c : above a b (trim low k s ++ c) = above a b (trim low k s) + above a b c.
  by rewrite /above count_cat.
rewrite above_trim // [above low v (s ++ w)]/above count_cat -!/(above _ _ _).
set a := above low v s; set b := above low v w.
have -> : (minn k a + b < k) = (a + b < k).
  case: (leqP k a) => ka //.
  by rewrite [LHS]ltnNge leq_addr ltnNge (leq_trans ka (leq_addr _ _)).
case h: (a + b < k); rewrite ?andbF // !andbT.
by rewrite (leq_ltn_trans (leq_addr b a) h) andbT.
Qed.

(* x enters on top; what it displaces falls past every resident that ranks above it. *)
Fixpoint percolate (x : nat) (s : seq nat) : seq nat :=
  if s is y :: s' then if low y x then x :: percolate y s' else y :: percolate x s'
  else [:: x].

(* The token carried past depth 0, 1, 2, ... *)
Fixpoint carried (x : nat) (s : seq nat) : seq nat :=
  x :: if s is y :: s' then carried (if low y x then y else x) s' else [::].

Definition pour (s w : seq nat) : seq nat := foldl (fun s x => percolate x s) s w.

(* Highest first. *)
Definition sorted_pile (w : seq nat) : seq nat := sort (fun u v => ~~ low u v) w.

Lemma perm_swap x y (s : seq nat) : perm_eq (x :: y :: s) (y :: x :: s).
Proof. by apply/permP => a /=; rewrite addnCA. Qed.

Lemma perm_middle x (s w : seq nat) : perm_eq (s ++ x :: w) (x :: s ++ w).
Proof. by apply/permP => a; rewrite /= !count_cat /= addnCA. Qed.

Lemma percolate_perm x s : perm_eq (percolate x s) (x :: s).
Proof.
elim: s x => //= y s IH x; case: ifP => _; first by rewrite perm_cons.
apply: perm_trans (perm_swap y x s); by rewrite perm_cons.
Qed.

Lemma trim_cons_top k hi lo w :
  uniq (hi :: lo :: w) -> size w <= k -> low lo hi ->
  perm_eq (hi :: trim low k (lo :: w)) (trim low k.+1 (hi :: lo :: w)).
Proof.
move=> us wk lh; have /andP[hlw ulw] := us.
have uw : uniq w by case/andP: ulw.
apply: uniq_perm; [|exact: trim_uniq|].
  rewrite /= trim_uniq // andbT; apply: contra hlw; apply: mem_subseq.
  exact: trim_subseq.
move=> v; rewrite inE !mem_trim // [v \in hi :: _]inE.
have [->|vh] /= := eqVneq v hi.
  rewrite /above /= (low_irr order) (low_asym order lh) !add0n ltnS.
  by rewrite (leq_trans (count_size _ _) wk).
case vin: (v \in lo :: w) => //=.
suff : (count (low v) (lo :: w) < k) = (low v hi + count (low v) (lo :: w) < k.+1) by [].
case vhi: (low v hi); first by rewrite add1n ltnS.
rewrite add0n.
have hv : low hi v by case/orP: (low_total order vh); rewrite ?vhi.
have nlo : v != lo by apply: contraTneq lh => <-; rewrite (low_asym order hv).
have vw : v \in w by move: vin; rewrite inE (negbTE nlo).
have -> : count (low v) (lo :: w) = count (low v) w.
  by rewrite /= (low_asym order (low_trans order lh hv)).
suff h : count (low v) w < k by rewrite h ltnW.
apply: leq_trans wk; rewrite -(count_predC (low v) w) -addn1 leq_add2l -has_count.
by apply/hasP; exists v; rewrite //= (low_irr order).
Qed.

Lemma trim0 s : trim low 0 s = [::].
Proof. by apply: size0nil; rewrite size_trim min0n. Qed.

Lemma take_percolate k x s : uniq (x :: s) ->
  perm_eq (take k (percolate x s)) (trim low k (x :: take k s)).
Proof.
elim: s x k => [|y s IH] x [|k] us.
- by rewrite take0 trim0.
- by rewrite /= trim_small.
- by rewrite take0 trim0.
have /andP[xys uys] := us.
have sz : size (take k s) <= k by rewrite size_take; case: ltnP => // /ltnW.
have ut z : uniq (z :: s) -> uniq (z :: take k s).
  move=> /= /andP[zs us']; rewrite take_uniq // andbT.
  by apply: contra zs; apply: mem_take.
have uxs : uniq (x :: s).
  by move: xys uys; rewrite /= inE negb_or => /andP[_ ->] /andP[].
have uall : uniq (x :: y :: take k s).
  have /andP[_ /ut] := us; rewrite /= => /andP[-> ->].
  rewrite inE negb_or !andbT; move: xys; rewrite inE negb_or => /andP[-> xs].
  by apply: contra xs; apply: mem_take.
have uall' : uniq (y :: x :: take k s).
  by rewrite (perm_uniq (perm_swap _ _ _)).
rewrite /= ; case: ifP => yx /=.
  apply: perm_trans (trim_cons_top uall sz yx).
  by rewrite perm_cons; apply: IH; case/andP: us.
have nyx : x != y by move: xys; rewrite inE negb_or => /andP[].
have xy : low x y by case/orP: (low_total order nyx); rewrite ?yx.
apply: (@perm_trans _ (trim low k.+1 (y :: x :: take k s))).
  apply: perm_trans (trim_cons_top uall' sz xy).
  by rewrite perm_cons; apply: IH.
by apply: trim_perm => //; apply: perm_swap.
Qed.

Lemma pour_perm s w : perm_eq (pour s w) (s ++ w).
Proof.
elim: w s => [|x w IH] s; first by rewrite cats0.
apply: perm_trans (IH _) _; rewrite -cat_rcons perm_cat2r.
by apply: perm_trans (percolate_perm _ _) _; rewrite perm_sym perm_rcons.
Qed.

Lemma take_pour k s w : uniq (s ++ w) ->
  perm_eq (take k (pour s w)) (trim low k (take k s ++ w)).
Proof.
elim: w s => [|x w IH] s us.
  rewrite cats0 trim_small //= size_take; by case: ltnP => // /ltnW.
have uxs : uniq (x :: s).
  move: us; rewrite -cat_rcons cat_uniq => /andP[+ _].
  by rewrite (perm_uniq (_ : perm_eq _ (x :: s))) // perm_rcons.
have us' : uniq (percolate x s ++ w).
  rewrite (perm_uniq (_ : perm_eq _ (s ++ x :: w))) // -cat_rcons perm_cat2r.
  by apply: perm_trans (percolate_perm _ _) _; rewrite perm_sym perm_rcons.
have ut : uniq (x :: take k s ++ w).
  rewrite -(perm_uniq (perm_middle _ _ _)).
  by apply: subseq_uniq us; apply: cat_subseq => //; apply: take_subseq.
apply: perm_trans (IH _ us') _.
apply: (@perm_trans _ (trim low k (trim low k (x :: take k s) ++ w))).
  apply: trim_perm => //; last by rewrite perm_cat2r; apply: take_percolate.
  apply: subseq_uniq us'; apply: cat_subseq => //; exact: take_subseq.
apply: perm_trans (@trim_cat k (x :: take k s) w ut) _.
by apply: trim_perm => //; rewrite perm_sym perm_middle.
Qed.

Lemma take_pile k w : uniq w -> perm_eq (take k (sorted_pile w)) (trim low k w).
Proof.
move=> uw; pose ge u v := ~~ low u v.
have tot : total ge.
  move=> u v; rewrite /ge -negb_and; apply/andP => -[uv].
  by rewrite (low_asym order uv).
have tr : transitive ge.
  move=> v u z; rewrite /ge => uv vz; apply/negP => uz.
  have [vu|nvu] := eqVneq v u; first by rewrite vu uz in vz.
  have vu : low v u by case/orP: (low_total order nvu) => // h; rewrite h in uv.
  by rewrite (low_trans order vu uz) in vz.
set r := sorted_pile w.
have pr : perm_eq r w by rewrite /r /sorted_pile perm_sort.
have sr : sorted ge r by apply: sort_sorted.
have ur : uniq r by rewrite (perm_uniq pr).
apply: perm_trans (trim_perm order k ur pr).
apply: uniq_perm; [exact: take_uniq|exact: trim_uniq|].
move=> v; rewrite mem_trim //.
elim: r k sr ur {pr} => [|h r IH] [|k] //= sr; rewrite ?ltn0 ?andbF // => /andP[hr ur].
have hall : all (ge h) r by rewrite (path_sortedE tr) in sr; case/andP: sr.
rewrite !inE; have [->|vh] /= := eqVneq v h.
  rewrite /above /= (low_irr order) add0n; apply/esym; suff -> : count (low h) r = 0 by [].
  by apply/eqP; rewrite -leqn0 leqNgt -has_count -all_predC.
rewrite (IH k) ?(path_sorted sr) //; case vr: (v \in r) => //=.
have lv : low v h.
  by case/orP: (low_total order vh) => // hv; move/allP: hall => /(_ _ vr); rewrite /ge hv.
suff : (above low v r < k) = (low v h + above low v r < k.+1) by [].
by rewrite lv.
Qed.

Lemma size_carried x s : size (carried x s) = (size s).+1.
Proof. by elim: s x => //= y s IH x; rewrite IH. Qed.

Lemma nth_carried x s k : k <= size s -> nth 0 (carried x s) k = lowest low x (take k s).
Proof. by elim: s x k => [|y s IH] x [|k] //= ks; rewrite IH. Qed.

Theorem carried_is_evicted k x s : uniq (x :: s) -> k <= size s ->
  perm_eq (nth 0 (carried x s) k :: trim low k (x :: take k s)) (x :: take k s).
Proof.
move=> us ks; rewrite nth_carried // /trim /= size_takel // subSnn /=.
by rewrite perm_sym; apply/perm_to_rem/lowest_mem.
Qed.

End Orders.

Section Runs.

Variable low : nat -> rel nat.
Hypothesis order : forall t, strict_order (low t).
Variable evicts : pred nat.

Notation store := (store low evicts).
Notation attended := (attended low evicts).

Lemma inclusion_next k t :
  {subset store k t <= store k.+1 t} /\ size (store k.+1 t) <= (size (store k t)).+1.
Proof.
elim: t => [//|t [ss sz]].
have ss' : {subset attended k t <= attended k.+1 t}.
  by move=> x; rewrite !mem_rcons !inE => /orP[->//|/ss->]; rewrite orbT.
have sz' : size (attended k.+1 t) <= (size (attended k t)).+1 by rewrite !size_rcons ltnS.
rewrite !storeS; case: ifP => // _.
by apply: trim_inclusion => //; apply: attended_uniq.
Qed.

(* The cache of a smaller budget lies in that of a larger one. *)
Theorem inclusion k k' t : k <= k' -> {subset store k t <= store k' t}.
Proof.
move=> kk; rewrite -(subnK kk); elim: (k' - k) => // m IH x xs.
by rewrite addSn; apply: (inclusion_next _ t).1; apply: IH.
Qed.

Theorem attended_inclusion k k' t : k <= k' -> {subset attended k t <= attended k' t}.
Proof.
move=> kk x; rewrite !mem_rcons !inE => /orP[->//|/(inclusion kk)->]; by rewrite orbT.
Qed.

(* With attention that is never negative, the attended mass does not fall when the budget grows. *)
Theorem attended_mass (A : nat -> nat -> nat) k k' t : k <= k' ->
  \sum_(j <- attended k t) A t j <= \sum_(j <- attended k' t) A t j.
Proof.
move=> kk; have us := attended_uniq low evicts k t; have us' := attended_uniq low evicts k' t.
by rewrite (perm_big _ (perm_sub us us' (attended_inclusion kk))) big_cat leq_addr.
Qed.

(* One stack for all budgets: the stack and the pocket of pending tokens, before step t. *)
Fixpoint loop (t : nat) : seq nat * seq nat :=
  if t is t'.+1 then
    let: (stack, pending) := loop t' in
    let pending := rcons pending t' in
    if evicts t' then
      (if stack is [::] then sorted_pile (low t') pending else pour (low t') stack pending, [::])
    else (stack, pending)
  else ([::], [::]).

Lemma loop_spec t :
  let: (stack, pending) := loop t in
  perm_eq (stack ++ pending) (iota 0 t) /\
  forall k, perm_eq (take k stack ++ pending) (store k t).
Proof.
elim: t => [//|t]; rewrite /=; case: (loop t) => stack pending [all held].
have iotaS : iota 0 t.+1 = rcons (iota 0 t) t by rewrite -addn1 iotaD cats1.
have all' : perm_eq (stack ++ rcons pending t) (iota 0 t.+1).
  by rewrite -rcons_cat iotaS -!cats1 perm_cat2r.
have held' k : perm_eq (take k stack ++ rcons pending t) (attended k t).
  by rewrite -rcons_cat /attended -!cats1 perm_cat2r.
have us : uniq (stack ++ rcons pending t) by rewrite (perm_uniq all') iota_uniq.
case: ifP => // _; rewrite !cats0; split.
  case: stack us all' {held held' all} => [|y stack] us all'.
    by apply: perm_trans all'; rewrite perm_sort.
  exact: perm_trans (pour_perm _ _ _) all'.
move=> k; rewrite cats0 -/(attended k t).
have uk : uniq (take k stack ++ rcons pending t).
  by rewrite (perm_uniq (held' k)) attended_uniq.
apply: perm_trans (trim_perm (order t) k uk (held' k)).
case: stack us uk {all held held' all'} => [|y stack] us uk.
  exact: take_pile.
exact: take_pour.
Qed.

Theorem one_stack t k :
  perm_eq (take k (loop t).1 ++ (loop t).2) (store k t).
Proof. by have := loop_spec t; case: (loop t) => stack pending [_]; apply. Qed.

(* A token on the stack is cached by exactly the budgets of at least its depth. *)
Corollary depth_is_least_budget t k j : j < t ->
  (j \in store k t) = (j \in (loop t).2) || (index j (loop t).1 < k).
Proof.
move=> jt; have := loop_spec t; case: (loop t) => stack pending [all held] /=.
rewrite -(perm_mem (held k)) mem_cat orbC.
have [//|jp] /= := boolP (j \in pending).
have js : j \in stack.
  have : j \in stack ++ pending by rewrite (perm_mem all) mem_iota.
  by rewrite mem_cat (negbTE jp) orbF.
by rewrite in_take.
Qed.

(* The mass that budget k attends is a sum over depths: one pass gives it for every budget. *)
Corollary mass_by_depth (A : nat -> nat -> nat) t k :
  \sum_(j <- attended k t) A t j =
  \sum_(j <- take k (loop t).1) A t j + \sum_(j <- rcons (loop t).2 t) A t j.
Proof.
have h : perm_eq (take k (loop t).1 ++ rcons (loop t).2 t) (attended k t).
  by rewrite -rcons_cat /attended -!cats1 perm_cat2r; apply: one_stack.
by rewrite -(perm_big _ h) big_cat.
Qed.

End Runs.

Print Assumptions trim_inclusion.
Print Assumptions carried_is_evicted.
Print Assumptions inclusion.
Print Assumptions attended_inclusion.
Print Assumptions attended_mass.
Print Assumptions one_stack.
Print Assumptions depth_is_least_budget.
Print Assumptions mass_by_depth.
