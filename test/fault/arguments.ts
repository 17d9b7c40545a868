/** The command line of the fault programs. */

/** Returns the number after `--name`, or `fallback` if there is no such option. */
export function numberOption(args: readonly string[], name: string, fallback: number): number {
  const at = args.indexOf(`--${name}`)
  return at === -1 ? fallback : Number(args[at + 1])
}

/** Prints what went wrong, if anything did, and lets the program then exit with an error. */
export function printComplaints(complaints: string): void {
  if (complaints === '') return
  console.log(complaints)
  process.exitCode = 1
}
